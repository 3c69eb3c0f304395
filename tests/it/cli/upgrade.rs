//! Proves a change of the binary under load: the new process gets the sockets, the old one finishes what it began.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::Desk;
use crate::fake::{Event, FakeAgentOs, Reply};
use crate::stack::Who;

const PATIENCE: Duration = Duration::from_secs(30);

/// A process and those that came after it, whose log lines come together. All are killed on drop.
struct Serving {
    child: Child,
    log: Receiver<Value>,
    pids: Vec<u32>,
}

impl Serving {
    fn start(desk: &Desk, program: &Path) -> Self {
        let mut command = desk.command(&["run"]);
        let mut by_name = Command::new(program);
        by_name.args(command.get_args()).current_dir(desk.folder.path()).env_clear();
        by_name.envs(command.get_envs().map(|(name, value)| (name, value.unwrap_or_default())));
        command = by_name;
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { pids: vec![child.id()], child, log }
    }

    fn until(&self, text: &str) -> Value {
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) if line.to_string().contains(text) => return line,
                Ok(line) => seen.push(line.to_string()),
                Err(_) => panic!("the log does not say `{text}`: {seen:#?}"),
            }
        }
    }

    /// Waits until no process is left that could write to the log.
    fn until_all_have_ended(&self) {
        while match self.log.recv_timeout(PATIENCE) {
            Ok(_) => true,
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => panic!("a process does not end"),
        } {}
    }

    fn signal(&self, name: &str, pid: u32) {
        assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        for pid in self.pids.iter().skip(1) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends one request on a connection; returns the status, or what went wrong.
fn ask(stream: &mut TcpStream, request: &str) -> Result<u16, String> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).map_err(|error| format!("write: {error}"))?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&seen).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                let status = head[9..12].parse().map_err(|_| head.to_owned())?;
                let closes = head.contains("connection: close");
                return if closes { Err(format!("closes {status}")) } else { Ok(status) };
            }
        }
        match stream.read(&mut buffer).map_err(|error| format!("read: {error}"))? {
            0 => return Err(format!("closed after {text:?}")),
            n => seen.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Callers without pause: half of them on connections of their own, half on kept ones.
fn load(address: SocketAddr, stop: &Arc<AtomicBool>, done: &Sender<()>) -> Vec<JoinHandle<Vec<String>>> {
    let request =
        format!("GET /sessions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", Who::alice().token());
    let caller = |keeps: bool| {
        let (stop, done, request) = (Arc::clone(stop), done.clone(), request.clone());
        std::thread::spawn(move || {
            let (mut failures, mut kept) = (Vec::new(), None);
            while !stop.load(Ordering::Relaxed) {
                let mut stream = match kept.take().map_or_else(|| TcpStream::connect(address), Ok) {
                    Ok(stream) => stream,
                    Err(error) => {
                        failures.push(format!("connect: {error}"));
                        continue;
                    }
                };
                match ask(&mut stream, &request) {
                    Ok(200) => kept = keeps.then_some(stream),
                    // Answered, and told that the connection ends: nothing is lost.
                    Err(why) if why == "closes 200" => {}
                    other => failures.push(format!("{other:?}")),
                }
                // Nobody counts any more once the load is to stop.
                let _ = done.send(());
            }
            failures
        })
    };
    [true, false, true, false].into_iter().map(caller).collect()
}

/// Waits for so many more requests to be done.
fn go_on(done: &Receiver<()>, more: usize) {
    done.try_iter().for_each(drop);
    for _ in 0..more {
        done.recv_timeout(PATIENCE).expect("the load goes on");
    }
}

/// Makes a name lead to another file, at once.
fn link(name: &Path, to: &Path) {
    let fresh = name.with_extension("fresh");
    std::os::unix::fs::symlink(to, &fresh).unwrap();
    std::fs::rename(&fresh, name).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_under_load_costs_no_request_and_no_stream() {
    let os = FakeAgentOs::start().await;
    let desk = Desk::new(&os.url(), "");
    let settings = std::fs::read_to_string(desk.file("config.toml")).unwrap();
    let settings =
        settings.replace("[admin]", "pid_file = \"pid\"\n[admin]").replace("per_minute = 60", "per_second = 100000");
    std::fs::write(desk.file("config.toml"), settings.replace("[quota]", "[quota]\nflood = \"off\"")).unwrap();
    // Started by a name that then leads to another file, as a package manager or a link does it.
    let program = desk.file("tollbridge");
    link(&program, Path::new(env!("CARGO_BIN_EXE_tollbridge")));
    let mut serving = tokio::task::block_in_place(|| Serving::start(&desk, &program));
    let address: SocketAddr = serving.until("\"started\"")["address"].as_str().unwrap().parse().unwrap();

    let events = [
        Event::new("RunStarted", json!({ "run_id": "r-1", "session_id": "s-1" })),
        Event::new("RunCompleted", json!({ "run_id": "r-1", "content": "the end" })),
    ];
    let (reply, gate) = Reply::paced_sse(&events);
    os.pin("POST", "/agents/assistant/runs", reply);
    let run = crate::stack::Ask::run("assistant").field("message", "hi").by(&Who::alice());
    let mut flow = crate::stack::open_at(address, run).await;
    gate.open_once();
    flow.until("RunStarted").await;

    let (stop, (sender, done)) = (Arc::new(AtomicBool::new(false)), channel());
    let callers = load(address, &stop, &sender);
    let work = tokio::task::spawn_blocking(move || {
        go_on(&done, 50);
        // A binary that does not come up changes nothing.
        link(&program, Path::new("/bin/false"));
        serving.signal("-USR2", serving.pids[0]);
        let line = serving.until("binary not upgraded");
        assert!(line["error"].as_str().unwrap().contains("ended with exit status: 1 before it served"), "{line}");
        go_on(&done, 50);
        link(&program, Path::new(env!("CARGO_BIN_EXE_tollbridge")));
        for _ in 0..2 {
            let old = *serving.pids.last().unwrap();
            serving.signal("-USR2", old);
            let new = serving.until("the new process serves")["pid"].as_u64().unwrap();
            serving.pids.push(u32::try_from(new).unwrap());
            serving.until("\"draining\"");
            go_on(&done, 100);
        }
        let pid = std::fs::read_to_string(desk.file("pid")).unwrap();
        assert_eq!(pid.trim(), serving.pids[2].to_string());
        stop.store(true, Ordering::Relaxed);
        (serving, desk)
    });
    let (mut serving, desk) = work.await.unwrap();
    let failures: Vec<String> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    assert_eq!(failures, Vec::<String>::new());

    // The first process still holds the stream, and ends with it.
    assert!(serving.child.try_wait().unwrap().is_none());
    gate.open();
    let (rest, clean) = flow.rest().await;
    assert!(clean && rest.contains("the end") && !rest.contains("event: error"), "{rest}");
    tokio::task::block_in_place(|| {
        assert!(serving.child.wait().unwrap().success());
        serving.signal("-TERM", serving.pids[2]);
        serving.until_all_have_ended();
        assert!(!desk.file("pid").exists());
    });
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_process_that_is_told_to_end_during_a_hand_over_ends_with_the_one_that_it_started() {
    use std::os::unix::fs::PermissionsExt as _;
    let desk = Desk::new("http://127.0.0.1:9", "");
    let program = desk.file("tollbridge");
    link(&program, Path::new(env!("CARGO_BIN_EXE_tollbridge")));
    let mut serving = Serving::start(&desk, &program);
    serving.until("\"started\"");
    // One that never serves.
    let stuck = desk.file("stuck");
    std::fs::write(&stuck, "#!/bin/sh\necho stuck >&2\nexec /bin/sleep 1000\n").unwrap();
    std::fs::set_permissions(&stuck, std::fs::Permissions::from_mode(0o755)).unwrap();
    link(&program, &stuck);
    serving.signal("-USR2", serving.pids[0]);
    serving.until("stuck");
    serving.signal("-TERM", serving.pids[0]);
    serving.until("\"draining\"");
    assert!(serving.child.wait().unwrap().success());
    serving.until_all_have_ended();
}

#[test]
fn a_file_store_cannot_be_shared_with_a_new_process() {
    let desk = Desk::new("http://127.0.0.1:9", "[store]\nfile = \"quota.db\"\n");
    let settings = std::fs::read_to_string(desk.file("config.toml")).unwrap();
    std::fs::write(desk.file("config.toml"), settings.replace("[quota]", "[quota]\nstore = \"file\"")).unwrap();
    let serving = Serving::start(&desk, Path::new(env!("CARGO_BIN_EXE_tollbridge")));
    serving.until("\"started\"");
    serving.signal("-USR2", serving.pids[0]);
    let line = serving.until("binary not upgraded");
    assert!(line["error"].as_str().unwrap().contains("belongs to one process"), "{line}");
}
