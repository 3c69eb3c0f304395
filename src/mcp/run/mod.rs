//! Owns a run from a client's point of view: follow its events, say what goes on, report how it stands.
//! Does not start runs by itself (`tools::runs` asks for that).
//! Invariant: a run that outlives its call keeps being read, so AgentOS does not take it for abandoned.

pub(crate) mod media;
pub(crate) mod view;
pub(crate) mod waiting;

pub(crate) mod follow;
pub(crate) mod report;
