//! Proves `tollbridge check`: it refuses what `run` would refuse, and leaves nothing behind.

use std::collections::BTreeSet;
use std::net::TcpListener;

use super::Desk;

const NOBODY: &str = "http://127.0.0.1:9";

fn files(desk: &Desk) -> BTreeSet<String> {
    let entries = std::fs::read_dir(desk.folder.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_log_file_that_run_could_not_open_is_found_by_check() {
    let log = |target: &str| format!("[telemetry]\naccess_log = {{ file = \"{target}\" }}\naudit_log = \"off\"\n");
    for (target, cause) in [
        ("gone/access.jsonl", "No such file or directory (os error 2)"),
        ("config.toml/access.jsonl", "Not a directory (os error 20)"),
        (".", "Is a directory (os error 21)"),
    ] {
        let desk = Desk::new(NOBODY, &log(target));
        let path = std::fs::canonicalize(desk.folder.path()).unwrap();
        for verb in ["check", "run"] {
            let said = desk.run(&[verb]);
            assert_eq!(said.code, 1, "{verb} {target}: {said:?}");
            let expected = format!("cannot open log file `{target}`: {cause}");
            let err = said.err.replace(&format!("{}/", path.display()), "").replace("./", "");
            assert!(err.lines().any(|line| line == expected), "{verb} {target}: {err}");
        }
    }
}

#[test]
fn every_problem_of_the_modules_and_the_logs_is_found_in_one_run() {
    let desk = Desk::new(NOBODY, "[telemetry]\naudit_log = { file = \"gone/audit.jsonl\" }\n");
    std::fs::write(desk.file("list"), "").unwrap();
    let config = std::fs::read_to_string(desk.file("config.toml")).unwrap();
    let start = config.find("dir = ").unwrap();
    let end = start + config[start..].find('\n').unwrap();
    std::fs::create_dir(desk.file("none")).unwrap();
    std::fs::write(desk.file("config.toml"), format!("{}dir = \"none\"{}", &config[..start], &config[end..])).unwrap();
    let said = desk.run(&["check"]);
    assert_eq!(said.code, 1);
    for part in ["no policy found", "cannot open log file", "gone/audit.jsonl"] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
}

#[test]
fn check_binds_nothing_and_creates_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let desk = Desk::new(NOBODY, "[telemetry]\naccess_log = { file = \"access.jsonl\" }\n");
    let config = std::fs::read_to_string(desk.file("config.toml")).unwrap();
    let listen = format!("listen = \"{}\"", taken.local_addr().unwrap());
    std::fs::write(desk.file("config.toml"), config.replacen("listen = \"127.0.0.1:0\"", &listen, 1)).unwrap();
    let before = files(&desk);
    let said = desk.run(&["check"]);
    assert_eq!((said.code, files(&desk)), (0, before), "{said:?}");
    let refused = desk.run(&["run"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("cannot listen on `127.0.0.1:"), "{refused:?}");
    assert!(refused.err.contains("Address already in use (os error 98)"), "{refused:?}");
}
