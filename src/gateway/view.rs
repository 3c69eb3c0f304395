//! Owns the circumstances of a call as policies see them, and the one way in which the gateway asks policy.
//! Does not decide (`policy` does) and looks nothing up.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::agentos::Operation;
use crate::cluster::Cluster;
use crate::policy::{Ask, Context, Policies, ResourceFacts};
use crate::principal::Principal;
use crate::telemetry::Door;

/// The circumstances of a call.
#[derive(Clone)]
pub(super) struct View {
    pub(super) door: Door,
    pub(super) peer: IpAddr,
    pub(super) human: bool,
    /// The MCP tool that makes the call.
    pub(super) tool: Option<&'static str>,
}

impl View {
    /// The question whether the caller may use the operation on a resource of the cluster that nobody owns; what more
    /// is known of the resource or of the message is set by struct update.
    pub(super) fn ask<'a>(
        &self,
        principal: &'a Principal,
        cluster: &'a Cluster,
        operation: &'static Operation,
        id: &'a str,
    ) -> Ask<'a> {
        let settings = &cluster.settings;
        Ask {
            principal,
            operation,
            resource: ResourceFacts {
                open: settings.open,
                tenant: Some(&principal.tenant),
                ..ResourceFacts::new(operation.resource, id, &settings.tenants)
            },
            context: Context {
                door: self.door.as_str(),
                cluster: &settings.name,
                now: SystemTime::now(),
                source_ip: self.peer,
                message_bytes: 0,
                human: self.human,
            },
        }
    }

    /// Says whether the policies let the caller use the operation on a resource that nobody owns. For lists: what is left
    /// out of one needs no reason.
    pub(super) fn may(
        &self,
        policies: &Policies,
        principal: &Principal,
        cluster: &Cluster,
        operation: &'static Operation,
        id: &str,
    ) -> bool {
        policies.decide(&self.ask(principal, cluster, operation, id)).is_allow()
    }
}
