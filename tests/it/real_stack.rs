//! Owns the gateway of a test in front of two replicas of a real AgentOS, and the way around it that only a test has.
//! Does not judge.

#![allow(dead_code, reason = "a fixture offers more than each test takes")]

use serde_json::Value;

use crate::agno::{AgentOs, Agno, Setup};
use crate::stack::{AGENTOS_KEY, Ask, Got, Settings, Stack, Who, agentos_token, send_to};

/// The gateway, two replicas behind it.
pub(crate) struct Real {
    /// The release.
    pub(crate) agno: Agno,
    /// The gateway.
    pub(crate) stack: Stack,
    replicas: [AgentOs; 2],
}

// === impl Real ===

impl Real {
    /// Starts all of it. Slow runs last eight seconds.
    pub(crate) async fn start(agno: Agno) -> Self {
        Self::with(agno, &[]).await
    }

    /// The same with further variables for AgentOS.
    pub(crate) async fn with(agno: Agno, environment: &[(&'static str, &str)]) -> Self {
        let setup = Setup::with_jwt(agno, AGENTOS_KEY).and("SLOW_CHUNKS", "80");
        let setup = environment.iter().fold(setup, |setup, (name, value)| setup.and(name, value));
        let first = AgentOs::start(setup).await;
        let second = first.replica().await;
        let replicas = [first, second];
        let endpoints = [replicas[0].url(), replicas[1].url()];
        // A busy machine must not look like an AgentOS that is down.
        let settings = Settings::new().set("[clusters.health]", "timeout", "\"20s\"");
        let settings = settings.set("[clusters.timeouts]", "connect", "\"10s\"");
        let stack = Stack::over(&endpoints, settings).await;
        Self { agno, stack, replicas }
    }

    /// Sends a request as somebody, through the gateway.
    pub(crate) async fn by(&self, who: &Who, ask: Ask) -> Got {
        self.stack.send(ask.by(who)).await
    }

    /// Sends a request to AgentOS itself, with a token that says `sub`: what a gateway is there to prevent.
    pub(crate) async fn bare(&self, subject: &str, ask: Ask) -> Got {
        let scopes = [
            "agents:read",
            "agents:run",
            "sessions:read",
            "sessions:write",
            "memories:read",
            "memories:write",
            "approvals:read",
        ];
        let token = agentos_token(subject, &scopes);
        let address = ([127, 0, 0, 1], self.replicas[0].port()).into();
        send_to(address, ask.bearer(&token)).await
    }

    /// Starts a run that answers as a whole.
    pub(crate) async fn run(&self, who: &Who, path: &str, session: &str, message: &str) -> Value {
        let ask = Ask::post(&format!("{path}/runs")).field("message", message).field("stream", "false");
        let got = self.by(who, ask.field("session_id", session)).await;
        assert_eq!(got.status, 200, "{}", got.text());
        got.json()
    }
}

/// The data of the events of a stream.
pub(crate) fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?).ok()).collect()
}
