//! Owns the Cedar schema: every entity type, attribute and action that a policy may name, written from the catalogue.
//! Does not build entities (`entities`) and does not judge policies (`load`).
//! Invariant: every row has one action, in exactly one group.

use std::fmt::Write as _;

use crate::agentos::{Action, Operation, Resource};

/// The namespace of everything that a policy names.
pub(super) const NAMESPACE: &str = "Tollbridge";

const HEAD: &str = r#"// The vocabulary of Tollbridge policies. Written by `tollbridge policy schema`; do not edit.
namespace Tollbridge {
  // A role of the caller: "viewer", "operator", "approver", "admin", "platform_admin" or any other name.
  entity Role;

  entity Tenant;

  // A person. The id is `<tenant>~<subject>`: User::"acme~alice".
  entity User in [Role, Tenant] {
    subject: String,
    tenant: Tenant,
    scopes: Set<String>,
    plan?: String,
  };

  // A machine with an API key. The id is `<tenant>~key:<id>`.
  entity Service in [Role, Tenant] {
    subject: String,
    tenant: Tenant,
    scopes: Set<String>,
    plan?: String,
  };
"#;

const CONTEXT: &str = r#"
  type CallContext = {
    door: String,                 // "http", "mcp" or "websocket"
    operation: String,            // the action's id
    cluster: String,
    now: datetime,                // policies that read it are decided afresh each time
    source_ip: ipaddr,            // likewise
    message_bytes: Long,          // likewise
    human: Bool,                  // an MCP client claims that a person confirmed: never sufficient alone
    destructive: Bool,            // hard to undo
    reach: String,                // "owned" rows of one user, a shared "component", or "os_wide"
    exclusive: Bool,              // exactly one tenant may use the cluster or component
    scopes_accepted: Set<String>, // the AgentOS scopes any of which grants this call
    scopes_mode: String,          // "add": scopes grant beside roles; "ceiling": they only narrow
  };

"#;

/// Returns the schema of these rows as `.cedarschema` text.
pub(super) fn text(rows: &[&'static Operation]) -> String {
    let mut out = String::from(HEAD);
    for &resource in Resource::ALL {
        push_resource(&mut out, resource);
    }
    out.push_str(CONTEXT);
    let groups: Vec<String> = Action::ALL.iter().map(|a| format!("\"{a}\"")).collect();
    let _ = writeln!(out, "  // Groups: `action in Tollbridge::Action::\"read\"`.\n  action {};\n", groups.join(", "));
    for row in rows {
        push_action(&mut out, row);
    }
    out.push_str("}\n");
    out
}

fn push_resource(out: &mut String, resource: Resource) {
    let _ = writeln!(out, "\n  entity {resource} {{");
    out.push_str("    id: String,              // empty for a collection\n");
    out.push_str("    tenants: Set<Tenant>,    // who may use the cluster or component\n");
    out.push_str("    owner?: String,          // subject of the owner\n");
    out.push_str("    tenant?: Tenant,         // tenant of the owner\n");
    out.push_str("    component?: String,      // agent, team or workflow that the call goes through\n");
    if resource == Resource::Approval {
        out.push_str("    tool_name?: String,\n    status?: String,\n");
        out.push_str("    requested_by?: String,   // subject that started the waiting run\n");
    }
    out.push_str("  };\n");
}

fn push_action(out: &mut String, row: &Operation) {
    let _ = writeln!(
        out,
        "  action {:?} in [\"{}\"] appliesTo {{ principal: [User, Service], resource: [{}], context: CallContext }};",
        row.id, row.action, row.resource,
    );
}
