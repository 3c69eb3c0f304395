//! Owns the pause of a run as a question to a person: what is asked, how the answer is read, and what ties the two
//! together when they travel in two requests.
//! Does not continue runs (`tools::pausing`) and does not judge approvals (`gateway`).
//! Invariants: a question names the tool and its arguments as AgentOS stored them; an answer counts for the caller, the
//! call, the run and the pause that were asked about, until its time is up, and once.

mod person;
mod questions;
mod ticket;

pub(super) use person::{Reply, ask};
pub(super) use questions::{Decided, Questions, Said};
pub(super) use ticket::{Ticket, digest_of};
