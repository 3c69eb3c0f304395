//! Owns amounts of what runs use, and what models cost. Does not count anything (`budget`, `book`).
//! Invariant: a price is never rounded down, and a model without a price costs as much as the dearest one.

use std::collections::BTreeMap;

/// Tokens and their price, in millionths of the operator's currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Model tokens.
    pub tokens: u64,
    /// Millionths of the currency.
    pub micros: u64,
}

/// What a run used of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSpent<'a> {
    /// The model as AgentOS names it.
    pub model: &'a str,
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
}

/// What a million tokens of a model cost, in millionths of the currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// A million input tokens.
    pub input: u64,
    /// A million output tokens.
    pub output: u64,
}

/// The prices of all models.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Prices {
    by_model: BTreeMap<String, Price>,
    dearest: Price,
}

// === impl Amount ===

impl Amount {
    pub(super) fn plus(self, other: Self) -> Self {
        let tokens = self.tokens.saturating_add(other.tokens);
        Self { tokens, micros: self.micros.saturating_add(other.micros) }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        let tokens = self.tokens.saturating_sub(other.tokens);
        Self { tokens, micros: self.micros.saturating_sub(other.micros) }
    }

    pub(super) fn max(self, other: Self) -> Self {
        Self { tokens: self.tokens.max(other.tokens), micros: self.micros.max(other.micros) }
    }

    pub(super) fn is_zero(self) -> bool {
        self == Self::default()
    }
}

// === impl Prices ===

impl Prices {
    pub(super) fn new(by_model: BTreeMap<String, Price>) -> Self {
        let dearest = by_model.values().fold(Price::default(), |dearest, price| Price {
            input: dearest.input.max(price.input),
            output: dearest.output.max(price.output),
        });
        Self { by_model, dearest }
    }

    /// The price of what was used of a model.
    pub(super) fn of(&self, spent: ModelSpent<'_>) -> u64 {
        let price = self.by_model.get(spent.model).copied().unwrap_or(self.dearest);
        let cost =
            u128::from(spent.input) * u128::from(price.input) + u128::from(spent.output) * u128::from(price.output);
        u64::try_from(cost.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Tokens and price of everything that was used.
    pub(super) fn sum<'a>(&self, spent: impl Iterator<Item = ModelSpent<'a>>) -> Amount {
        spent.fold(Amount::default(), |sum, spent| {
            sum.plus(Amount { tokens: spent.input.saturating_add(spent.output), micros: self.of(spent) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_round_up_and_unknown_models_cost_as_much_as_the_dearest() {
        let million = 1_000_000;
        let prices = Prices::new(
            [
                ("small".to_owned(), Price { input: million / 10, output: million / 2 }),
                ("large".to_owned(), Price { input: 3 * million, output: 15 * million }),
            ]
            .into(),
        );
        let of = |model, input, output| prices.of(ModelSpent { model, input, output });
        assert_eq!(of("large", 1_000, 200), 6_000);
        assert_eq!(of("small", 1, 0), 1);
        assert_eq!(of("brand-new", 10, 10), of("large", 10, 10));
        let both =
            [ModelSpent { model: "small", input: 10, output: 0 }, ModelSpent { model: "large", input: 0, output: 2 }];
        assert_eq!(prices.sum(both.into_iter()), Amount { tokens: 12, micros: 31 });
        assert_eq!(Prices::default().sum(both.into_iter()), Amount { tokens: 12, micros: 0 });
    }
}
