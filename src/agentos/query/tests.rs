//! Tests of the query: read as Starlette does, narrowed by the row, written back unchanged in meaning.

use proptest::prelude::*;

use super::*;
use crate::agentos::operation::Method;

fn row() -> Operation {
    Operation {
        query: &["user_id", "session_id", "topics", "limit"],
        user_id: &[Place::Query("user_id")],
        session_id: &[Place::Query("session_id")],
        ..Operation::new("get_things", Method::Get, "/things")
    }
}

#[test]
fn pairs_read_as_starlette_reads_them() {
    for (raw, pairs) in [
        ("", &[] as &[(&str, &str)]),
        ("&&", &[]),
        ("a", &[("a", "")]),
        ("a=", &[("a", "")]),
        ("=a", &[("", "a")]),
        ("a=b=c", &[("a", "b=c")]),
        ("a=1&a=2", &[("a", "1"), ("a", "2")]),
        ("a=1;b=2", &[("a", "1;b=2")]),
        ("a=x+y%2Bz%20w", &[("a", "x y+z w")]),
        ("user%5Fid=me", &[("user_id", "me")]),
        ("user_id[]=me", &[("user_id[]", "me")]),
        ("a=%zz", &[("a", "%zz")]),
        ("a=%ff", &[("a", "\u{fffd}")]),
    ] {
        let query = Query::parse(raw).unwrap();
        let given: Vec<_> = query.pairs().iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(given, pairs, "{raw:?}");
    }
}

#[test]
fn raw_characters_outside_ascii_are_refused() {
    for raw in ["a=é", "a=b c", "a=\t", "a=\r\n"] {
        assert_eq!(Query::parse(raw), Err(QueryError::NotAscii), "{raw:?}");
    }
}

#[test]
fn the_number_of_pairs_is_bounded() {
    assert!(Query::parse(&"a=1&".repeat(256)).is_ok());
    assert_eq!(Query::parse(&"a=1&".repeat(257)), Err(QueryError::TooMany));
}

#[test]
fn only_what_the_row_allows_stays() {
    let query = Query::parse("limit=5&debug=1&topics=a&topics=b&user_id%5B%5D=x&user_id=me").unwrap();
    let kept = query.for_operation(&row()).unwrap();
    assert_eq!(kept.to_string(), "limit=5&topics=a&topics=b&user_id=me");
}

#[test]
fn an_identity_given_twice_is_refused() {
    for (raw, name) in [
        ("user_id=me&user_id=you", "user_id"),
        ("user_id=me&user%5fid=you", "user_id"),
        ("session_id=a&limit=1&session_id=a", "session_id"),
    ] {
        assert_eq!(Query::parse(raw).unwrap().for_operation(&row()), Err(QueryError::Duplicated(name)), "{raw:?}");
    }
    assert!(Query::parse("limit=1&limit=2").unwrap().for_operation(&row()).is_ok());
}

#[test]
fn a_parameter_is_read_set_and_removed_by_name() {
    let mut query = Query::parse("a=1&b=2&a=3").unwrap();
    assert_eq!(query.get("a"), Some("3"));
    query.set("a", "x y&z=é");
    assert_eq!(query.to_string(), "b=2&a=x+y%26z%3D%C3%A9");
    query.remove("b");
    query.remove("a");
    assert!(query.is_empty());
    assert_eq!(query.get("a"), None);
}

#[test]
fn a_sorted_query_ignores_the_order_of_names() {
    let left = Query::parse("b=2&a=1&b=1").unwrap().sorted();
    let right = Query::parse("a=1&b=2&b=1").unwrap().sorted();
    assert_eq!(left, right);
    assert_eq!(left.to_string(), "a=1&b=2&b=1");
}

proptest! {
    #[test]
    fn what_is_written_reads_as_the_same_pairs(raw in "[ -~]{0,40}") {
        if let Ok(query) = Query::parse(&raw) {
            prop_assert_eq!(Query::parse(&query.to_string()).unwrap(), query);
        }
    }
}
