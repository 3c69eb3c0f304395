//! Owns the holes of the interfaces that AgentOS can open beside its REST routes: A2A and AG-UI. Both take the caller's
//! identity from their body; the gateway serves neither, and runs go through the REST routes.

use futures_util::FutureExt as _;
use serde_json::json;

use super::*;

pub(super) const HOLES: &[Hole] = &[
    hole!("run an agent by A2A, without scopes", OLDEST, a2a),
    hole!("stream an agent by A2A, without scopes", OLDEST, a2a_stream),
    hole!("run an agent by AG-UI, without scopes", OLDEST, ag_ui),
    hole!("run as somebody else by AG-UI", OLDEST, ag_ui_as_alice),
];

/// With one shared key 2.x asks nobody for it here.
pub(super) const ANONYMOUS: &[Hole] = &[
    hole!("MCP without a credential", OLDEST, off NONE, isolated NONE, |side| sockets::anonymous_mcp(side).boxed()),
    hole!("A2A without a credential", OLDEST, off NONE, isolated NONE, |side| anonymous(side, message("send")).boxed()),
    hole!("AG-UI without a credential", OLDEST, off NONE, isolated NONE, |side| anonymous(side, gui("s-gui")).boxed()),
];

fn message(verb: &str) -> Ask {
    let parts = json!([{ "kind": "text", "text": "by-interface" }]);
    let message = json!({ "messageId": "m1", "role": "user", "contextId": "s-a2a", "parts": parts });
    let body =
        json!({ "jsonrpc": "2.0", "id": "1", "method": format!("message/{verb}"), "params": { "message": message } });
    Ask::post(&format!("/a2a/agents/assistant/v1/message:{verb}")).json(&body)
}

fn gui(thread: &str) -> Ask {
    let said = json!([{ "id": "1", "role": "user", "content": "by-interface" }]);
    Ask::post("/agui").json(&json!({ "threadId": thread, "runId": uuid::Uuid::new_v4().to_string(), "state": {},
        "messages": said, "tools": [], "context": [], "forwardedProps": { "user_id": "alice" } }))
}

/// Whoever runs agents does so over REST.
async fn instead_of(side: &Side, attack: &Got) -> Seen {
    let run = Ask::run("assistant").field("message", "over-rest").field("stream", "false");
    let own = side.send(ALICE, run).await;
    let open = attack.status < 300 && attack.text().contains("by-interface");
    Seen { open, owner: shows(&own, "over-rest"), said: format!("{}; alice {}", said(attack), said(&own)) }
}

async fn a2a(side: &Side) -> Seen {
    instead_of(side, &side.send(NOBODY, message("send")).await).await
}

async fn a2a_stream(side: &Side) -> Seen {
    instead_of(side, &side.send(NOBODY, message("stream")).await).await
}

async fn ag_ui(side: &Side) -> Seen {
    instead_of(side, &side.send(NOBODY, gui(&side.own("s-gui"))).await).await
}

/// What was said in her name shows among alice's sessions.
async fn ag_ui_as_alice(side: &Side) -> Seen {
    let thread = side.own("s-gui-alice");
    let mut seen = instead_of(side, &side.send(NOBODY, gui(&thread)).await).await;
    let user = if side.gateway { "acme~alice" } else { "alice" };
    let hers = side.send(ALICE, Ask::get(&format!("/sessions?type=agent&user_id={user}&limit=100"))).await;
    (seen.open, seen.said) = (shows(&hers, &thread), format!("{}; her sessions {}", seen.said, said(&hers)));
    seen
}

/// REST is not open on the bare AgentOS: the rightful caller is the gateway's.
async fn anonymous(side: &Side, ask: Ask) -> Seen {
    let got = side.bare(ask).await;
    let own = if side.gateway { side.send(ALICE, Ask::get("/quota")).await.status } else { 200 };
    Seen { open: got.status < 300, owner: own == 200, said: said(&got) }
}
