//! Proves `tollbridge test`: the shipped cases and those of the examples hold, and a case that does not says how.

use std::path::Path;

use super::Desk;

/// A desk whose policies are the shipped ones and the examples, made real by their names.
fn desk() -> Desk {
    let desk = Desk::new("http://127.0.0.1:9", "");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let own = desk.file("policies");
    std::fs::create_dir(&own).unwrap();
    for folder in [shipped.clone(), shipped.join("examples")] {
        for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|file| file.is_file())
        {
            let name = file.file_name().unwrap().to_str().unwrap();
            std::fs::copy(&file, own.join(name.strip_suffix(".example").unwrap_or(name))).unwrap();
        }
    }
    let config = std::fs::read_to_string(desk.file("config.toml")).unwrap();
    let config = config.replace(&format!("dir = {shipped:?}"), "dir = \"policies\"");
    std::fs::write(desk.file("config.toml"), config).unwrap();
    desk
}

#[test]
fn the_cases_of_shipped_policies_and_of_examples_hold() {
    let shipped = Desk::new("http://127.0.0.1:9", "").run(&["test"]);
    assert_eq!((shipped.code, shipped.err.as_str()), (0, ""), "{shipped:?}");
    assert!(shipped.out.ends_with(" passed, 0 failed\n"), "{shipped:?}");
    let examples = desk().run(&["test", "policies/office-hours.test.toml"]);
    assert_eq!((examples.code, examples.out.as_str()), (0, "3 passed, 0 failed\n"), "{examples:?}");
}

#[test]
fn a_case_that_fails_names_file_policy_and_line() {
    let desk = desk();
    let case = "[[case]]\nname = \"nobody answers at night\"\noperation = \"resolve_approval\"\n\
                principal = { tenant = \"acme\", subject = \"pat\", roles = [\"approver\"] }\n\
                resource = { id = \"a1\", owner = \"bob\" }\n\
                context = { now = \"2026-01-05T22:00:00Z\", source_ip = \"10.1.2.3\" }\nexpect = \"allow\"\n";
    std::fs::write(desk.file("wrong.test.toml"), case).unwrap();
    let said = desk.run(&["test", "wrong.test.toml"]);
    assert_eq!((said.code, said.out.as_str()), (1, "0 passed, 1 failed\n"), "{said:?}");
    let line =
        "wrong.test.toml: case `nobody answers at night`: expected  allow\nbut got   deny\n          `office-hours`  ";
    assert!(said.err.starts_with(line) && said.err.contains("office-hours.cedar:"), "{said:?}");
}
