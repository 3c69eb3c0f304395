//! Proves what a serving process does on SIGHUP.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Stdio};

use super::Desk;

/// A serving process; killed on drop.
struct Serving {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Serving {
    fn start(desk: &Desk) -> Self {
        let mut child = desk.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut serving = Self { child, log };
        serving.until("started");
        serving
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Reads the log up to the line with this text; the test runner ends a test that waits for ever.
    fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while let Some(Ok(line)) = self.log.next() {
            if line.contains(text) {
                return line;
            }
            seen.push_str(&line);
        }
        panic!("the log ended before `{text}`: {seen}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_hang_up_reloads_policies_and_log_files_and_never_ends_the_process() {
    let desk = Desk::new("http://127.0.0.1:9", "");
    let policies = desk.file("own");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("a.cedar"), "@id(\"a\")\npermit (principal, action, resource);\n").unwrap();
    let config = std::fs::read_to_string(desk.file("config.toml")).unwrap();
    let shipped = format!("{:?}", std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies"));
    std::fs::write(desk.file("config.toml"), config.replace(&shipped, "\"own\"")).unwrap();
    let mut serving = Serving::start(&desk);
    std::fs::rename(desk.file("audit.jsonl"), desk.file("audit.1")).unwrap();
    serving.signal("-HUP");
    serving.until("policies reloaded");
    std::fs::write(policies.join("a.cedar"), "permit (").unwrap();
    serving.signal("-HUP");
    let line = serving.until("policies not reloaded");
    assert!(line.contains("a.cedar:1:"), "{line}");
    assert!(desk.file("audit.jsonl").exists(), "opened anew");
    serving.signal("-TERM");
    serving.until("stopped");
    assert!(serving.child.wait().unwrap().success());
}
