//! Tests of canonicalisation: what is refused, what is rewritten, and that the result is stable.

use proptest::prelude::*;

use super::*;

#[test]
fn doubtful_paths_are_refused() {
    for (raw, why) in [
        ("", BadPath::NotOriginForm),
        ("*", BadPath::NotOriginForm),
        ("agents", BadPath::NotOriginForm),
        ("http://example.com/agents", BadPath::NotOriginForm),
        ("/agents?x=1", BadPath::QueryOrFragment),
        ("/agents#x", BadPath::QueryOrFragment),
        ("//", BadPath::EmptySegment),
        ("///", BadPath::EmptySegment),
        ("//agents", BadPath::EmptySegment),
        ("/agents//x", BadPath::EmptySegment),
        ("/.//", BadPath::DotSegment),
        ("/agents/./x", BadPath::DotSegment),
        ("/agents/a/../b", BadPath::DotSegment),
        ("/agents/%2e%2e/b", BadPath::DotSegment),
        ("/agents/.%2E/b", BadPath::DotSegment),
        ("/agents/..;/b", BadPath::DotSegment),
        ("/agents/..;x=1/b", BadPath::DotSegment),
        ("/agents/..%3Bx", BadPath::DotSegment),
        ("/agents/a%2Fb", BadPath::Separator),
        ("/agents/a%2fb", BadPath::Separator),
        ("/sessions%2f", BadPath::Separator),
        ("/agents/a%5cb", BadPath::Separator),
        ("/agents/a\\b", BadPath::Separator),
        ("/agents/..%2f", BadPath::Separator),
        ("/agents/%00", BadPath::Control),
        ("/agents/a%0d%0ab", BadPath::Control),
        ("/agents/a%09", BadPath::Control),
        ("/agents/a%7F", BadPath::Control),
        ("/agents/a%C2%85b", BadPath::Control),
        ("/agents/a\tb", BadPath::Control),
        ("/agents/a b", BadPath::WhiteSpace),
        ("/agents/a%20", BadPath::WhiteSpace),
        ("/agents/%20a", BadPath::WhiteSpace),
        ("/agents/a%C2%A0", BadPath::WhiteSpace),
        ("/agents/%", BadPath::PercentEncoding),
        ("/agents/%4", BadPath::PercentEncoding),
        ("/agents/%zz", BadPath::PercentEncoding),
        ("/agents/%+1", BadPath::PercentEncoding),
        ("/agents/%c0%af", BadPath::NotUtf8),
        ("/agents/%ff", BadPath::NotUtf8),
        ("/agents/%ed%a0%80", BadPath::NotUtf8),
        ("/agents/é", BadPath::NotUtf8),
    ] {
        assert_eq!(CanonicalPath::parse(raw), Err(why), "{raw:?}");
    }
}

#[test]
fn equal_paths_have_one_form() {
    for (raw, canonical, segments) in [
        ("/", "/", &[] as &[&str]),
        ("/agents", "/agents", &["agents"]),
        ("/agents/", "/agents", &["agents"]),
        ("/agents///", "/agents", &["agents"]),
        ("/%61gents", "/agents", &["agents"]),
        ("/%7Eme/a%2Db", "/~me/a-b", &["~me", "a-b"]),
        ("/agents/a%20b", "/agents/a%20b", &["agents", "a b"]),
        ("/agents/a+b", "/agents/a+b", &["agents", "a+b"]),
        ("/agents/a%2Bb", "/agents/a+b", &["agents", "a+b"]),
        ("/agents/a;b=c", "/agents/a;b=c", &["agents", "a;b=c"]),
        ("/agents/a%3Fb%23c", "/agents/a%3Fb%23c", &["agents", "a?b#c"]),
        ("/agents/%252F", "/agents/%252F", &["agents", "%2F"]),
        ("/agents/%252e%252e", "/agents/%252e%252e", &["agents", "%2e%2e"]),
        ("/agents/%c3%a9", "/agents/%C3%A9", &["agents", "é"]),
        ("/agents/{x}|\"", "/agents/%7Bx%7D%7C%22", &["agents", "{x}|\""]),
        ("/agents/...", "/agents/...", &["agents", "..."]),
        ("/a2a/agents/x/.well-known/v1", "/a2a/agents/x/.well-known/v1", &["a2a", "agents", "x", ".well-known", "v1"]),
    ] {
        let path = CanonicalPath::parse(raw).unwrap();
        assert_eq!((path.as_str(), path.segments()), (canonical, owned(segments).as_slice()), "{raw:?}");
    }
}

fn owned(segments: &[&str]) -> Vec<String> {
    segments.iter().map(|segment| (*segment).to_owned()).collect()
}

/// Raw paths near the rules: separators, dots, percent signs, all kinds of bytes encoded.
fn raw_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z0-9._~!$&'()*+,;=:@-]{1,4}",
        2 => any::<u8>().prop_map(|byte| format!("%{byte:02x}")),
        1 => any::<char>().prop_map(|c| c.to_string().bytes().map(|b| format!("%{b:02X}")).collect::<String>()),
        1 => prop_oneof![Just("/"), Just("."), Just(".."), Just("%"), Just("%25"), Just("\\"), Just(";"), Just("{")]
            .prop_map(str::to_owned),
        2 => Just("/".to_owned()),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #[test]
    fn a_canonical_path_parses_to_itself(raw in raw_path()) {
        if let Ok(path) = CanonicalPath::parse(&raw) {
            prop_assert_eq!(CanonicalPath::parse(path.as_str()).unwrap(), path);
        }
    }

    #[test]
    fn the_canonical_form_decodes_to_what_was_sent(raw in raw_path()) {
        if let Ok(path) = CanonicalPath::parse(&raw) {
            let decoded = |text: &str| {
                let text = percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned();
                text.trim_end_matches('/').to_owned()
            };
            prop_assert_eq!(decoded(path.as_str()), decoded(&raw));
            let joined: String = path.segments().iter().map(|segment| format!("/{segment}")).collect();
            prop_assert_eq!(decoded(&raw), joined);
        }
    }

    #[test]
    fn a_canonical_path_is_safe_to_forward(raw in raw_path()) {
        if let Ok(path) = CanonicalPath::parse(&raw) {
            prop_assert!(path.as_str().bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\".contains(&byte)));
            prop_assert!(!path.as_str().contains("//"));
            prop_assert!(path.segments().iter().all(|s| !s.is_empty() && s != "." && s != ".." && !s.contains('/')));
        }
    }

    #[test]
    fn any_text_is_parsed_without_a_panic(raw in any::<String>()) {
        let _ = CanonicalPath::parse(&raw);
    }
}
