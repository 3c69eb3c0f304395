//! Owns what a dry run of admission leaves behind: one step per stage, in order, as plain data.
//! Does not decide (`admit`) and does not print (`cli`).
//! Invariant: nothing here holds a token or a message.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// What a stage said in a dry run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Goes on.
    Passed,
    /// Stops here.
    Refused,
    /// Could not be learned from where the dry run ran; a served call would learn it, or be refused.
    Unknown,
}

/// One stage of a dry run.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The stage's name.
    pub stage: &'static str,
    /// Its verdict.
    pub said: Said,
    /// What it knows, by name.
    pub facts: Map<String, Value>,
}

/// Roles and scopes that, all of them added, would let the call pass the policies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remedy {
    /// Roles to add.
    pub roles: Vec<String>,
    /// Scopes to add.
    pub scopes: Vec<String>,
}

/// Why a call would be served or refused.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The stages that were reached, in order.
    pub steps: Vec<Step>,
    /// The refusal, if there is one.
    pub refused: Option<Refusal>,
    /// Any of these would let a call pass that the policies refuse.
    pub remedies: Vec<Remedy>,
    /// What else would help.
    pub help: Option<String>,
}

/// What a dry run has gathered so far.
#[derive(Debug, Default)]
pub(super) struct Trail {
    pub(super) steps: Vec<Step>,
    pub(super) remedies: Vec<Remedy>,
    pub(super) help: Option<String>,
}

// === impl Said ===

impl Said {
    /// The word that is printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

// === impl Explanation ===

impl Explanation {
    /// Says whether something that decides could not be learned.
    pub fn is_uncertain(&self) -> bool {
        self.steps.iter().any(|step| step.said == Said::Unknown)
    }
}

// === impl Trail ===

impl Trail {
    /// Adds a step; `facts` that are no object, and those that are null, are left out.
    pub(super) fn add(&mut self, stage: &'static str, said: Said, facts: Value) {
        let mut facts = if let Value::Object(facts) = facts { facts } else { Map::new() };
        facts.retain(|_, value| !value.is_null());
        self.steps.push(Step { stage, said, facts });
    }

    /// Ends the trail with how admission ended.
    pub(super) fn end(mut self, refused: Option<Refusal>) -> Explanation {
        if let Some(refusal) = &refused {
            let stage = refusal.stage.as_str();
            let row = refusal.code.row();
            let facts = serde_json::json!({
                "code": row.code,
                "status": row.status,
                "detail": refusal.detail,
                "reason": refusal.reason,
                "allow": refusal.allow,
            });
            let told = self.steps.last_mut().filter(|step| step.stage == stage && step.said == Said::Refused);
            match (told, facts) {
                (Some(step), Value::Object(facts)) => {
                    step.facts.extend(facts.into_iter().filter(|(_, value)| !value.is_null()));
                }
                (_, facts) => self.add(stage, Said::Refused, facts),
            }
            self.help = self.help.or_else(|| Some(refusal.help().to_owned()));
        }
        Explanation { steps: self.steps, refused, remedies: self.remedies, help: self.help }
    }
}
