//! Owns asking several clusters at once and putting the answers together.
//! Does not know what is asked.
//! Invariant: what one cluster refuses or fails to answer is named in the result, unless all do: then it is a failure.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::mcp::ask::{Ask, Asker, Failure};

/// What several questions brought.
pub(super) struct Gathered<T> {
    /// Answers with what they belong to.
    pub(super) answers: Vec<(T, Value)>,
    failures: Vec<(Arc<str>, Failure)>,
}

/// Asks all questions at once. How many there are is bounded by the clusters of the caller.
pub(super) async fn gather<T>(asker: &Asker, questions: Vec<(T, Ask<'_>)>) -> Gathered<T> {
    let asked = questions.into_iter().map(|(tag, ask)| async move {
        let answer = asker.json(&ask).await;
        (tag, ask.cluster, answer)
    });
    let mut gathered = Gathered { answers: Vec::new(), failures: Vec::new() };
    for (tag, cluster, answer) in join_all(asked).await {
        match answer {
            Ok(answer) => gathered.answers.push((tag, answer)),
            Err(failure) => gathered.failures.push((cluster, failure)),
        }
    }
    gathered
}

impl<T> Gathered<T> {
    /// Fails when nothing was answered.
    ///
    /// # Errors
    /// The failure that says most: policy's refusal only when every question met it.
    pub(super) fn or_failure(self) -> Result<Self, Failure> {
        if !self.answers.is_empty() {
            return Ok(self);
        }
        let telling = self.failures.iter().find(|(_, f)| !f.is_forbidden()).or_else(|| self.failures.first());
        match telling {
            Some((_, failure)) => Err(failure.clone()),
            None => Ok(self),
        }
    }

    /// Adds to a result which clusters did not answer. What policy hides is not mentioned.
    pub(super) fn mention_failures<'a>(
        &'a self,
        result: &mut Value,
        others: impl Iterator<Item = (&'a Arc<str>, &'a str)>,
    ) {
        let failed = self.failures.iter().filter(|(_, failure)| !failure.is_forbidden() && !failure.is_not_found());
        let others = others.map(|(cluster, code)| json!({"cluster": **cluster, "code": code}));
        let failed = failed.map(|(cluster, failure)| json!({"cluster": **cluster, "code": failure.code()}));
        let mut failed: Vec<Value> = failed.chain(others).collect();
        failed.dedup();
        if let (Value::Object(map), false) = (result, failed.is_empty()) {
            map.insert("unavailable".to_owned(), Value::Array(failed));
        }
    }
}
