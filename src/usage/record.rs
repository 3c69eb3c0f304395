//! Owns the sum: tokens by model. Does not read replies (`reply`, `meter`).
//! Invariant: names at most `MODELS_MAX` models; further ones are counted under `other`.

use super::Terminal;

/// Most models that one record names.
pub const MODELS_MAX: usize = 64;
/// Longest model name that is kept, in bytes.
const MODEL_BYTES_MAX: usize = 128;

/// What a run used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageRecord {
    /// Tokens by model, in the order in which the models were first seen.
    pub models: Vec<ModelUsage>,
    /// Input tokens of all models.
    pub input_tokens: u64,
    /// Output tokens of all models.
    pub output_tokens: u64,
    /// How the run ended; `None` while it was not seen to end.
    pub terminal: Option<Terminal>,
    /// More may have been used than AgentOS reported: the run was cancelled, a model call was cut off, or the members
    /// of a team are missing from its reply (agno 2.5.6, not streamed). Charge no less than was reserved.
    pub incomplete: bool,
}

/// Tokens of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelUsage {
    /// The model's id as AgentOS names it; `unknown` when it names none.
    pub model: String,
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
}

impl UsageRecord {
    /// Input and output tokens together.
    pub fn tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    /// What was used since an earlier state of the same run.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        for before in &earlier.models {
            if let Some(model) = self.models.iter_mut().find(|model| model.model == before.model) {
                model.input = model.input.saturating_sub(before.input);
                model.output = model.output.saturating_sub(before.output);
            }
        }
        self.models.retain(|model| model.input > 0 || model.output > 0);
        self.input_tokens = self.input_tokens.saturating_sub(earlier.input_tokens);
        self.output_tokens = self.output_tokens.saturating_sub(earlier.output_tokens);
        self
    }

    /// Counts tokens of a model. Nothing is counted for none.
    pub(super) fn add(&mut self, model: Option<&str>, input: u64, output: u64) {
        if input == 0 && output == 0 {
            return;
        }
        self.input_tokens = self.input_tokens.saturating_add(input);
        self.output_tokens = self.output_tokens.saturating_add(output);
        let name = model.filter(|name| (1..=MODEL_BYTES_MAX).contains(&name.len())).unwrap_or("unknown");
        let room = self.models.len() < MODELS_MAX - 1;
        let name = if room || self.models.iter().any(|known| known.model == name) { name } else { "other" };
        match self.models.iter_mut().find(|known| known.model == name) {
            Some(known) => {
                known.input = known.input.saturating_add(input);
                known.output = known.output.saturating_add(output);
            }
            None => self.models.push(ModelUsage { model: name.to_owned(), input, output }),
        }
    }

    /// Counts everything that another record counted.
    pub(super) fn merge(&mut self, other: &Self) {
        for model in &other.models {
            self.add(Some(&model.model), model.input, model.output);
        }
        self.incomplete |= other.incomplete;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spray_of_model_names_is_bounded_and_loses_no_token() {
        let mut record = UsageRecord::default();
        for n in 0..1_000 {
            record.add(Some(&format!("model-{n}")), 1, 2);
        }
        record.add(Some(&"x".repeat(1_000)), 1, 2);
        assert_eq!((record.models.len(), record.tokens()), (MODELS_MAX, 3 * 1_001));
        let other = ModelUsage { model: "other".to_owned(), input: 938, output: 1_876 };
        assert_eq!(record.models.last(), Some(&other));
    }

    #[test]
    fn a_continuation_is_the_difference() {
        let (mut before, mut after) = (UsageRecord::default(), UsageRecord::default());
        before.add(Some("a"), 6, 5);
        before.add(Some("b"), 1, 1);
        after.add(Some("a"), 15, 13);
        after.add(Some("b"), 1, 1);
        let mut expected = UsageRecord::default();
        expected.add(Some("a"), 9, 8);
        assert_eq!(after.since(&before), expected);
    }
}
