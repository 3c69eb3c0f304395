//! Owns what a person writes into an MCP client to use the gateway.
//! Does not write files of other programs and does not know tokens: snippets name where one is found.
//! Invariant: every snippet is complete, and none holds a secret.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::super::{Ended, configuration, say, talk};
use super::token::VARIABLE;

/// Taken when neither the arguments nor a configuration says where the gateway is.
const URL: &str = "http://127.0.0.1:8080/mcp";
/// Where a token file stands unless one is named; clients expand no variables in arguments.
const TOKEN_FILE: &str = "/path/to/token";

/// Which client, and what to write.
#[derive(Debug, Args)]
pub(super) struct SnippetArguments {
    /// The client.
    #[arg(value_enum)]
    client: Client,
    /// The MCP endpoint; by default that of the configuration file, if there is one.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// File with the token, for clients that start `tollbridge mcp`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Let the client start `tollbridge mcp` even if it can connect by itself.
    #[arg(long)]
    stdio: bool,
}

/// The clients that there are snippets for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Client {
    ClaudeCode,
    ClaudeDesktop,
    Vscode,
    Cursor,
    Codex,
    Gemini,
    Zed,
}

/// How the client gets to the gateway.
struct Way<'a> {
    url: &'a str,
    command: &'a str,
    arguments: Vec<String>,
    stdio: bool,
}

/// Prints the snippet; where it belongs is said beside it.
pub(super) fn run(path: &Path, arguments: &SnippetArguments) -> Ended {
    let url = match (&arguments.url, path.exists()) {
        (Some(url), _) => url.clone(),
        (None, true) => match configuration(path) {
            Some(config) => format!("{}{}", config.mcp.public_url.as_str().trim_end_matches('/'), config.mcp.path),
            None => return Ended::Wrong,
        },
        (None, false) => URL.to_owned(),
    };
    // A desktop starts programs without the shell's search path.
    let command = std::env::current_exe().map_or_else(|_| "tollbridge".to_owned(), |exe| exe.display().to_string());
    let file = match &arguments.token_file {
        Some(file) => std::path::absolute(file).unwrap_or_else(|_| file.clone()).display().to_string(),
        None => TOKEN_FILE.to_owned(),
    };
    let way = Way {
        url: &url,
        command: &command,
        arguments: ["mcp", "--url", &url, "--token-file", &file].map(str::to_owned).into(),
        stdio: arguments.stdio || arguments.client.only_starts(),
    };
    talk(&arguments.client.place(&way));
    say(&arguments.client.snippet(&way))
}

// === impl Client ===

impl Client {
    /// Says whether it has to start a program: it cannot connect by itself, or could not take the token from anywhere but
    /// its own settings, in the clear.
    fn only_starts(self) -> bool {
        match self {
            Self::ClaudeDesktop | Self::Zed => true,
            Self::ClaudeCode | Self::Vscode | Self::Cursor | Self::Codex | Self::Gemini => false,
        }
    }

    /// Where the snippet belongs, and where the token comes from.
    fn place(self, way: &Way<'_>) -> String {
        let file = match self {
            Self::ClaudeCode => "`.mcp.json` in the project",
            Self::ClaudeDesktop => "`claude_desktop_config.json` (Settings, Developer, Edit Config)",
            Self::Vscode => "`.vscode/mcp.json`",
            Self::Cursor => "`~/.cursor/mcp.json`",
            Self::Codex => "`~/.codex/config.toml`",
            Self::Gemini => "`~/.gemini/settings.json`",
            Self::Zed => "Zed's `settings.json`",
        };
        let token = if way.stdio {
            let file = way.arguments.last().map_or(TOKEN_FILE, String::as_str);
            format!("the token stands in `{file}` (chmod 600), and is read again when it changes")
        } else if self == Self::Vscode {
            "the editor asks for the token once".to_owned()
        } else {
            format!("the token stands in the variable {VARIABLE}")
        };
        format!("for {file}; {token}")
    }

    fn snippet(self, way: &Way<'_>) -> String {
        if self == Self::Codex {
            return codex(way);
        }
        let server = if way.stdio { self.starting(way) } else { self.connecting(way.url) };
        let servers = json!({"tollbridge": server});
        let document = match self {
            Self::ClaudeCode | Self::ClaudeDesktop | Self::Cursor | Self::Gemini | Self::Codex => {
                json!({"mcpServers": servers})
            }
            Self::Vscode if way.stdio => json!({"servers": servers}),
            Self::Vscode => {
                let ask = json!({"type": "promptString", "id": "tollbridge-token", "description": "Tollbridge token",
                    "password": true});
                json!({"inputs": [ask], "servers": servers})
            }
            Self::Zed => json!({"context_servers": servers}),
        };
        format!("{document:#}\n")
    }

    /// The server as something to start.
    fn starting(self, way: &Way<'_>) -> Value {
        let mut server = json!({"command": way.command, "args": way.arguments});
        let more = match self {
            Self::ClaudeCode | Self::Vscode => Some(("type", json!("stdio"))),
            // Its patience is a minute; the gateway hands a run back before the fifth.
            Self::Gemini => Some(("timeout", json!(300_000))),
            Self::ClaudeDesktop | Self::Cursor | Self::Codex | Self::Zed => None,
        };
        if let (Some((name, value)), Value::Object(server)) = (more, &mut server) {
            server.insert(name.to_owned(), value);
        }
        server
    }

    /// The server as something to connect to.
    fn connecting(self, url: &str) -> Value {
        match self {
            Self::ClaudeCode => {
                json!({"type": "http", "url": url, "headers": bearer(&format!("${{{VARIABLE}}}"))})
            }
            Self::Vscode => json!({"type": "http", "url": url, "headers": bearer("${input:tollbridge-token}")}),
            Self::Gemini => {
                json!({"httpUrl": url, "headers": bearer(&format!("${VARIABLE}")), "timeout": 300_000})
            }
            Self::Cursor | Self::ClaudeDesktop | Self::Codex | Self::Zed => {
                json!({"url": url, "headers": bearer(&format!("${{env:{VARIABLE}}}"))})
            }
        }
    }
}

fn bearer(token: &str) -> Value {
    json!({"Authorization": format!("Bearer {token}")})
}

/// TOML; its basic strings are those of JSON (TOML 1.0, "String").
fn codex(way: &Way<'_>) -> String {
    let text = |text: &str| Value::from(text).to_string();
    let how = if way.stdio {
        format!("command = {}\nargs = {}\n", text(way.command), json!(way.arguments))
    } else {
        format!("url = {}\nbearer_token_env_var = {}\n", text(way.url), text(VARIABLE))
    };
    format!("[mcp_servers.tollbridge]\n{how}tool_timeout_sec = 300\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(stdio: bool) -> Way<'static> {
        let arguments = ["mcp", "--url", "https://g.test/mcp", "--token-file", "/t"].map(str::to_owned).into();
        Way { url: "https://g.test/mcp", command: "/bin/tollbridge", arguments, stdio }
    }

    #[test]
    fn snippets_name_the_url_and_where_the_token_is() {
        for client in Client::value_variants() {
            let stdio = client.only_starts();
            let text = client.snippet(&way(stdio));
            assert!(text.contains("https://g.test/mcp") && text.ends_with('\n'), "{client:?}: {text}");
            let token = if stdio { "\"--token-file\"" } else { "token" };
            assert!(text.to_ascii_lowercase().contains(token), "{client:?}: {text}");
            let started = client.snippet(&way(true));
            assert!(started.contains("/bin/tollbridge") && started.contains("/t"), "{client:?}: {started}");
            if *client != Client::Codex {
                serde_json::from_str::<Value>(&text).unwrap();
            }
        }
    }

    #[test]
    fn each_client_gets_its_own_form() {
        let of = |client: Client, stdio| serde_json::from_str::<Value>(&client.snippet(&way(stdio))).unwrap();
        let header = |value: &Value| value["headers"]["Authorization"].as_str().unwrap().to_owned();
        let code = &of(Client::ClaudeCode, false)["mcpServers"]["tollbridge"];
        assert_eq!((code["type"].as_str(), header(code).as_str()), (Some("http"), "Bearer ${TOLLBRIDGE_TOKEN}"));
        let editor = of(Client::Vscode, false);
        assert_eq!(header(&editor["servers"]["tollbridge"]), "Bearer ${input:tollbridge-token}");
        assert_eq!(editor["inputs"][0]["id"], "tollbridge-token");
        assert_eq!(header(&of(Client::Cursor, false)["mcpServers"]["tollbridge"]), "Bearer ${env:TOLLBRIDGE_TOKEN}");
        let gemini = &of(Client::Gemini, false)["mcpServers"]["tollbridge"];
        assert_eq!(
            (gemini["httpUrl"].as_str(), header(gemini).as_str()),
            (Some("https://g.test/mcp"), "Bearer $TOLLBRIDGE_TOKEN")
        );
        assert_eq!(of(Client::Zed, true)["context_servers"]["tollbridge"]["args"][0], "mcp");
        let codex = "[mcp_servers.tollbridge]\nurl = \"https://g.test/mcp\"\nbearer_token_env_var = \"TOLLBRIDGE_TOKEN\"\ntool_timeout_sec = 300\n";
        assert_eq!(Client::Codex.snippet(&way(false)), codex);
    }
}
