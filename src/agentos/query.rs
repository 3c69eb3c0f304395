//! Owns the query string: read as Starlette reads it, narrowed to what a row allows, written back.
//! Does not know who calls: the gateway sets the user id.
//! Invariant: what is written back reads as the pairs that were decided on.

use std::fmt;

use url::form_urlencoded;

use super::operation::{Operation, Place};

/// More pairs than any operation has parameters.
const PAIRS_MAX: usize = 256;

/// Decoded query pairs, in order. Of a repeated name AgentOS takes the last, except for list parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

/// Why a query is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A parameter that carries an identity stands twice: which one counts must not be a guess.
    #[error("query parameter `{0}` is given more than once")]
    Duplicated(&'static str),
    /// Raw characters outside ASCII, or raw control characters: AgentOS would read them as Latin-1.
    #[error("query has characters that must be percent-encoded")]
    NotAscii,
    /// More pairs than the limit.
    #[error("query has more than {PAIRS_MAX} parameters")]
    TooMany,
}

// === impl Query ===

impl Query {
    /// Reads a raw query without its `?`: pairs split at `&` only, `+` is a space, a missing `=` is an empty value.
    ///
    /// # Errors
    /// [`QueryError::NotAscii`] and [`QueryError::TooMany`].
    pub fn parse(raw: &str) -> Result<Self, QueryError> {
        if !raw.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(QueryError::NotAscii);
        }
        let pairs: Vec<_> =
            form_urlencoded::parse(raw.as_bytes()).into_owned().take(PAIRS_MAX.saturating_add(1)).collect();
        if pairs.len() > PAIRS_MAX { Err(QueryError::TooMany) } else { Ok(Self { pairs }) }
    }

    /// Keeps the parameters that the row allows and drops the rest, as AgentOS does.
    ///
    /// # Errors
    /// [`QueryError::Duplicated`] when a user, session or run id stands more than once.
    pub fn for_operation(&self, operation: &Operation) -> Result<Self, QueryError> {
        let places = [operation.user_id, operation.session_id, operation.run_id];
        for place in places.into_iter().flatten() {
            if let Place::Query(name) = place
                && self.pairs.iter().filter(|(given, _)| given == name).count() > 1
            {
                return Err(QueryError::Duplicated(name));
            }
        }
        let allowed = |name: &str| operation.query.contains(&name);
        Ok(Self { pairs: self.pairs.iter().filter(|(name, _)| allowed(name)).cloned().collect() })
    }

    /// The pairs, decoded, in order.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The value that AgentOS would take: the last one of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// Gives a parameter exactly one value.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.pairs.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a parameter out, however often it stands.
    pub fn remove(&mut self, name: &str) {
        self.pairs.retain(|(given, _)| given != name);
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The same query with its names in order, for a cache key. Repeated names keep their order.
    #[must_use]
    pub fn sorted(&self) -> Self {
        let mut pairs = self.pairs.clone();
        pairs.sort_by(|(left, _), (right, _)| left.cmp(right));
        Self { pairs }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in self.pairs.iter().enumerate() {
            if at > 0 {
                f.write_str("&")?;
            }
            form_urlencoded::byte_serialize(name.as_bytes()).try_for_each(|part| f.write_str(part))?;
            f.write_str("=")?;
            form_urlencoded::byte_serialize(value.as_bytes()).try_for_each(|part| f.write_str(part))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
