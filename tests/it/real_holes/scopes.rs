//! Owns the holes of scopes and tokens: callers without rights, tokens without what makes them safe.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use serde_json::json;

use super::*;

pub(super) const HOLES: &[Hole] = &[
    hole!("GET /registry", OLDEST, off BOTH, isolated NONE, |side| unmapped(side, || Ask::get("/registry")).boxed()),
    hole!("GET /components", OLDEST, off BOTH, isolated NONE, |side| unmapped(side, || Ask::get("/components")).boxed()),
    hole!("POST /components", OLDEST, create_component),
    hole!("change a component", OLDEST, change_component),
    hole!("delete a component", OLDEST, delete_component),
    hole!("migrate", OLDEST, off BOTH, isolated NONE, |side| unmapped(side, || Ask::post("/databases/all/migrate")).boxed()),
    hole!("search traces", OLDEST, search_traces),
    hole!("metrics of all tenants", BOTH, off BOTH, isolated BOTH, |side| metrics(side).boxed()),
    hole!("fetch from the sources of a knowledge base", OLDEST, remote_content),
    hole!("list the sources of a knowledge base", OLDEST, sources),
    hole!("session id that begins like a route", OLDEST, route_word),
    hole!("delete a session whose id begins like a route", OLDEST, delete_route_word),
    hole!("memory id that begins like a route", OLDEST, memory_route_word),
    hole!("approval id that begins like a route", OLDEST, approval_route_word),
    hole!("trace id that begins like a route", OLDEST, trace_route_word),
    hole!("continue through another agent's path", OLDEST, continue_elsewhere),
    hole!("schedule a run", OLDEST, schedule),
];

/// What makes a token safe; AgentOS without authorization reads none.
pub(super) const TOKENS: &[Hole] = &[
    hole!("token without an end", BOTH, off NONE, isolated NONE, |side| forged(side, &["exp"], |_| {}).boxed()),
    hole!("token of nobody", BOTH, off NONE, isolated NONE, |side| forged(side, &["sub"], |_| {}).boxed()),
    hole!("token of any issuer", BOTH, off NONE, isolated NONE, |side| forged(side, &[], foreign_issuer).boxed()),
    hole!("token for another service", BOTH, off NONE, isolated NONE, |side| forged(side, &[], foreign_audience).boxed()),
    hole!("token without the word Bearer", BOTH, bare_token),
];

/// A call that no scope was asked for; whoever runs the installation may.
async fn unmapped(side: &Side, make: impl Fn() -> Ask) -> Seen {
    let (nobody, root) = (side.send(NOBODY, make()).await, side.send(ROOT, make()).await);
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.status < 300, owner: root.status < 300, said: asked }
}

async fn create_component(side: &Side) -> Seen {
    let body =
        |name: &str| json!({ "name": name, "component_type": "agent", "config": { "name": name }, "stage": "draft" });
    let mark = if side.gateway { "g" } else { "d" };
    let nobody = side.send(NOBODY, Ask::post("/components").json(&body(&format!("planted-{mark}")))).await;
    let root = side.send(ROOT, Ask::post("/components").json(&body(&format!("meant-{mark}")))).await;
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.status < 300, owner: root.status < 300, said: asked }
}

/// A component that whoever runs the installation has made; gives its path.
async fn component(side: &Side, name: &str) -> String {
    let name = format!("{name}-{}", if side.gateway { "g" } else { "d" });
    let body = json!({ "name": name, "component_type": "agent", "config": { "name": name }, "stage": "draft" });
    let made = side.send(ROOT, Ask::post("/components").json(&body)).await;
    assert!(made.status < 300, "{made:?}");
    format!("/components/{}", made.json()["component_id"].as_str().unwrap())
}

async fn change_component(side: &Side) -> Seen {
    let path = component(side, "kept").await;
    unmapped(side, || Ask::new("PATCH", &path).json(&json!({ "description": "changed" }))).await
}

async fn delete_component(side: &Side) -> Seen {
    let (theirs, own) = (component(side, "stolen").await, component(side, "given-up").await);
    let nobody = side.send(NOBODY, Ask::new("DELETE", &theirs)).await;
    let root = side.send(ROOT, Ask::new("DELETE", &own)).await;
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.status < 300, owner: root.status < 300, said: asked }
}

/// The counts of all users together, for whoever may read metrics in its own tenant.
async fn metrics(side: &Side) -> Seen {
    let reader = Person { scopes: &["metrics:read"], ..GINA };
    let (gina, root) = (side.send(reader, Ask::get("/metrics")).await, side.send(ROOT, Ask::get("/metrics")).await);
    let asked = format!("gina {}; root {}", said(&gina), said(&root));
    Seen { open: gina.status < 300, owner: root.status < 300, said: asked }
}

/// The example has no sources: who gets past the guard learns that, others do not.
async fn past_the_guard(side: &Side, make: impl Fn() -> Ask, reached: &str) -> Seen {
    let (nobody, root) = (side.send(NOBODY, make()).await, side.send(ROOT, make()).await);
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.text().contains(reached), owner: root.text().contains(reached), said: asked }
}

async fn remote_content(side: &Side) -> Seen {
    let fetch = || Ask::post("/knowledge/remote-content").field("config_id", "bucket").field("path", "/x");
    past_the_guard(side, fetch, "Unknown content source").await
}

async fn sources(side: &Side) -> Seen {
    past_the_guard(side, || Ask::get("/knowledge/docs/sources/bucket/files"), "Knowledge base").await
}

async fn search_traces(side: &Side) -> Seen {
    let ask = || Ask::post("/traces/search").json(&json!({ "filter": null, "page": 1, "limit": 5 }));
    // A search reads the traces of everybody: at the gateway it is an OS-wide row.
    let (nobody, root) = (side.send(NOBODY, ask()).await, side.send(ROOT, ask()).await);
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    Seen { open: nobody.status < 300, owner: root.status < 300, said: asked }
}

/// 2.x takes `/sessions/agents…` for a route of agents and asks for no scope.
async fn route_word(side: &Side) -> Seen {
    let session = if side.gateway { "agents-of-mine-g" } else { "agents-of-mine-d" };
    side.run(NOBODY_WITH_RUNS, "assistant", "mine", session).await;
    let target = &format!("/sessions/{session}?type=agent");
    let nobody = side.send(Person { name: "runner", ..NOBODY }, Ask::get(target)).await;
    let own = side.send(NOBODY_WITH_RUNS, Ask::get(target)).await;
    let asked = format!("nobody {}; owner {}", said(&nobody), said(&own));
    Seen { open: nobody.status < 300, owner: own.status < 300, said: asked }
}

/// A deletion answers 204 whatever is there: who is told so got past the guard.
async fn delete_route_word(side: &Side) -> Seen {
    let session = if side.gateway { "agents-kept-g" } else { "agents-kept-d" };
    let owner = Person { scopes: &["agents:run", "sessions:read", "sessions:delete"], ..NOBODY_WITH_RUNS };
    side.run(owner, "assistant", "mine", session).await;
    let target = &format!("/sessions/{session}");
    let nobody = side.send(Person { name: "runner", ..NOBODY }, Ask::new("DELETE", target)).await;
    let own = side.send(owner, Ask::new("DELETE", target)).await;
    let asked = format!("nobody {}; owner {}", said(&nobody), said(&own));
    Seen { open: nobody.status < 300, owner: own.status < 300, said: asked }
}

/// Ids that AgentOS mints cannot be chosen: an attacker past the guard is told that there is no such row by AgentOS.
async fn no_such_row(side: &Side, target: &str) -> Seen {
    let (nobody, root) = (side.send(NOBODY, Ask::get(target)).await, side.send(ROOT, Ask::get(target)).await);
    let asked = format!("nobody {}; root {}", said(&nobody), said(&root));
    let open = !matches!(nobody.status, 401 | 403) && !nobody.text().contains("tollbridge");
    Seen { open, owner: root.status == 404, said: asked }
}

async fn memory_route_word(side: &Side) -> Seen {
    no_such_row(side, "/memories/agents-nothing").await
}

async fn approval_route_word(side: &Side) -> Seen {
    no_such_row(side, "/approvals/agents-nothing").await
}

async fn trace_route_word(side: &Side) -> Seen {
    no_such_row(side, "/traces/workflows-nothing").await
}

const NOBODY_WITH_RUNS: Person =
    Person { name: "runner", tenant: "acme", roles: &[], scopes: &["agents:run", "agents:read", "sessions:read"] };

/// A right to run one agent, used on the run of another.
async fn continue_elsewhere(side: &Side) -> Seen {
    let run = side.run(ALICE, "mailer", "mail carol", if side.gateway { "s-else-g" } else { "s-else-d" }).await;
    let (id, session) = (run["run_id"].as_str().unwrap(), run["session_id"].as_str().unwrap());
    let mut tools = run["tools"].clone();
    tools[0]["confirmed"] = json!(true);
    let resume = |agent: &str| {
        let ask = Ask::post(&format!("/agents/{agent}/runs/{id}/continue")).field("tools", &tools.to_string());
        ask.field("session_id", session).field("stream", "false")
    };
    let narrow = Person { name: "alice", tenant: "acme", roles: &[], scopes: &["agents:assistant:run"] };
    let elsewhere = side.send(narrow, resume("assistant")).await;
    let own = side.send(ALICE, resume("mailer")).await;
    let asked = format!("elsewhere {}; alice {}", said(&elsewhere), said(&own));
    Seen { open: elsewhere.status < 300, owner: own.status < 300 && own.text().contains("mailed"), said: asked }
}

/// Schedules run as AgentOS's own principal: a right to write schedules would be a right to run everything.
async fn schedule(side: &Side) -> Seen {
    let body = |name: &str| {
        json!({ "name": name, "cron_expr": "0 0 1 1 *", "endpoint": "/agents/assistant/runs", "method": "POST",
                "payload": { "message": "hi", "stream": "false" } })
    };
    let planner = Person { name: "planner", tenant: "acme", roles: &[], scopes: &["schedules:write"] };
    let mark = if side.gateway { "g" } else { "d" };
    let planned = side.send(planner, Ask::post("/schedules").json(&body(&format!("planted-{mark}")))).await;
    let root = side.send(ROOT, Ask::post("/schedules").json(&body(&format!("meant-{mark}")))).await;
    let asked = format!("planner {}; root {}", said(&planned), said(&root));
    Seen { open: planned.status < 300, owner: root.status < 300, said: asked }
}

fn foreign_issuer(claims: &mut Value) {
    claims["iss"] = json!("https://elsewhere.example");
}

fn foreign_audience(claims: &mut Value) {
    claims["aud"] = json!("another-service");
}

/// A token with claims left out or changed, signed with the right key.
async fn forged(side: &Side, without: &[&str], change: fn(&mut Value)) -> Seen {
    let (key, audience) = if side.gateway { (CALLER_KEY, "tollbridge") } else { (AGENTOS_KEY, "my-os") };
    // No `sub` needs an administrator on 3.x only where users are kept apart.
    let good = side.token(Person { scopes: &["agents:read"], ..ALICE }, key, audience);
    let mut claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(good.split('.').nth(1).unwrap()).unwrap()).unwrap();
    for name in without {
        claims.as_object_mut().unwrap().remove(*name);
    }
    change(&mut claims);
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signed = format!("{message}.{}", URL_SAFE_NO_PAD.encode(hs256(key, &message)));
    let (forged, own) =
        (side.bare(Ask::get("/agents").bearer(&signed)).await, side.bare(Ask::get("/agents").bearer(&good)).await);
    let asked = format!("forged {}; good {}", said(&forged), said(&own));
    Seen { open: forged.status < 300, owner: own.status < 300, said: asked }
}

fn hs256(key: &str, message: &str) -> Vec<u8> {
    use hmac::{Hmac, KeyInit as _, Mac as _};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

async fn bare_token(side: &Side) -> Seen {
    let (key, audience) = if side.gateway { (CALLER_KEY, "tollbridge") } else { (AGENTOS_KEY, "my-os") };
    let token = side.token(ALICE, key, audience);
    let bare = side.bare(Ask::get("/agents").header("authorization", &token)).await;
    let own = side.bare(Ask::get("/agents").bearer(&token)).await;
    Seen { open: bare.status < 300, owner: own.status < 300, said: format!("bare {}; own {}", said(&bare), said(&own)) }
}
