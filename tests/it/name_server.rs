//! Owns a small name server of a test's own on 127.0.0.1: it answers what the test says, fails, or keeps silent.
//! Does not speak TCP, cache or recurse.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::stack::Settings;

/// A record.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    /// An address.
    A([u8; 4]),
    /// An address.
    Aaaa([u8; 16]),
    /// A target of a service: priority, port, name.
    Srv(u16, u16, String),
}

/// What the server does with questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers them.
    Well,
    /// Answers that it failed.
    Failing,
    /// Says nothing.
    Silent,
}

#[derive(Debug)]
struct State {
    mood: Mood,
    records: HashMap<String, Vec<Record>>,
    asked: usize,
}

/// A running server; it ends with the value.
pub(crate) struct NameServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl NameServer {
    /// Starts a server that knows no name.
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { mood: Mood::Well, records: HashMap::new(), asked: 0 }));
        let (mut tasks, shared) = (JoinSet::new(), Arc::clone(&state));
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let answer = reply(&mut shared.lock().unwrap(), &buffer[..length]);
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { address, state, _tasks: tasks }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A cluster whose endpoints are behind the service, asked for often.
    pub(crate) fn settings(&self, service: &str, settings: Settings) -> Settings {
        settings
            .set("[[clusters]]", "dns", &format!("{service:?}"))
            .set("[clusters.resolver]", "interval", "\"100ms\"")
            .set("[clusters.resolver]", "timeout", "\"200ms\"")
            .set("[clusters.resolver]", "server", &format!("\"{}\"", self.address()))
    }

    /// Sets the records of a name.
    pub(crate) fn set(&self, name: &str, records: Vec<Record>) {
        self.state.lock().unwrap().records.insert(name.to_owned(), records);
    }

    /// Points a service at ports of 127.0.0.1.
    pub(crate) fn serve(&self, service: &str, ports: &[u16]) {
        self.set("here.test", vec![Record::A([127, 0, 0, 1])]);
        self.set(service, ports.iter().map(|port| Record::Srv(1, *port, "here.test".into())).collect());
    }

    /// Changes what it does with questions.
    pub(crate) fn turn(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// How many questions came so far.
    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }
}

fn reply(state: &mut State, question: &[u8]) -> Option<Vec<u8>> {
    state.asked += 1;
    let (name, end) = name_of(question)?;
    let kind = u16::from_be_bytes([question[end], question[end + 1]]);
    let known = state.records.get(&name.to_ascii_lowercase());
    let code: u8 = match (state.mood, known) {
        (Mood::Silent, _) => return None,
        (Mood::Failing, _) => 2,
        (Mood::Well, None) => 3,
        (Mood::Well, Some(_)) => 0,
    };
    let rows: Vec<(u16, Vec<u8>)> = known.filter(|_| code == 0).into_iter().flatten().map(wire).collect();
    let rows: Vec<_> = rows.into_iter().filter(|(of, _)| *of == kind).collect();
    // Header, the question as it was asked, then the records, each for the name of the question.
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::try_from(rows.len()).unwrap(), 0, 0, 0, 0]);
    answer.extend(&question[12..end + 4]);
    for (of, data) in rows {
        answer.extend([0xc0, 12]);
        answer.extend(of.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 1]);
        answer.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

/// The name that is asked for, and where it ends.
fn name_of(question: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).into_owned());
        at += length;
    }
}

fn wire(record: &Record) -> (u16, Vec<u8>) {
    match record {
        Record::A(address) => (1, address.to_vec()),
        Record::Aaaa(address) => (28, address.to_vec()),
        Record::Srv(priority, port, target) => {
            let mut data = [priority.to_be_bytes(), [0, 1], port.to_be_bytes()].concat();
            for label in target.split('.') {
                data.push(u8::try_from(label.len()).unwrap());
                data.extend(label.bytes());
            }
            data.push(0);
            (33, data)
        }
    }
}
