//! Owns a JSON request body on its way upstream: its top-level fields, each kept as the caller wrote it.
//! Does not know operations (`body` hands it the allow-list).
//! Invariant: no top-level name stands twice; parsers disagree on which one wins.

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde_json::value::RawValue;

/// A JSON object whose values are kept verbatim, in order.
#[derive(Debug)]
pub(super) struct Object(Vec<(String, Box<RawValue>)>);

/// Why a document is no such object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotAnObject {
    /// Not JSON at all; the text says where.
    Malformed(String),
    /// JSON, but an array or a scalar.
    OtherValue,
    /// The name stands twice.
    Duplicate(String),
}

const DUPLICATE: &str = "duplicate field ";

impl Object {
    /// Parses a document.
    ///
    /// # Errors
    /// [`NotAnObject`] when it is malformed, something else, or names a field twice.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, NotAnObject> {
        match serde_json::from_slice::<Self>(bytes) {
            Ok(object) => Ok(object),
            Err(error) => {
                let text = error.to_string();
                if let Some(name) = text.strip_prefix(DUPLICATE) {
                    let name = name.rsplit_once(" at line ").map_or(name, |(name, _)| name);
                    return Err(NotAnObject::Duplicate(name.to_owned()));
                }
                match serde_json::from_slice::<&RawValue>(bytes) {
                    Ok(value) if !value.get().trim_start().starts_with('{') => Err(NotAnObject::OtherValue),
                    Ok(_) | Err(_) => Err(NotAnObject::Malformed(text)),
                }
            }
        }
    }

    /// Names of the fields, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The value of a field.
    ///
    /// # Errors
    /// When it is there but cannot be read: nested too deeply, half a surrogate pair, a number out of range. AgentOS
    /// may read it all the same, so it must not count as absent.
    pub(super) fn get(&self, name: &str) -> Result<Option<serde_json::Value>, serde_json::Error> {
        let field = self.0.iter().find(|(n, _)| n == name);
        field.map(|(_, raw)| serde_json::from_str(raw.get())).transpose()
    }

    /// Sets a field.
    pub(super) fn set(&mut self, name: &str, value: &serde_json::Value) {
        let Ok(raw) = serde_json::value::to_raw_value(value) else { return };
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, slot)) => *slot = raw,
            None => self.0.push((name.to_owned(), raw)),
        }
    }

    /// The document to send.
    pub(super) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

impl serde::Serialize for Object {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> serde::Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields: Vec<(String, Box<RawValue>)> = Vec::new();
                // Callers choose how many there are: comparing each with all before it would take minutes.
                let mut names: HashSet<String> = HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if !names.insert(name.clone()) {
                        return Err(de::Error::custom(format_args!("{DUPLICATE}{name}")));
                    }
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_bytes_and_order() {
        let mut object = Object::parse(br#"{"b": 1.50, "a": {"x" : [1]}}"#).unwrap();
        object.set("user_id", &serde_json::json!("acme~alice"));
        assert_eq!(object.to_bytes(), r#"{"b":1.50,"a":{"x" : [1]},"user_id":"acme~alice"}"#);
    }

    #[test]
    fn a_field_that_cannot_be_read_is_not_absent() {
        let deep = format!(r#"{{"ids":["a",{}{}]}}"#, "[".repeat(200), "]".repeat(200));
        for odd in [r#"{"ids":["a","\ud800"]}"#, r#"{"ids":["a",1e999]}"#, &deep] {
            let object = Object::parse(odd.as_bytes()).unwrap();
            assert!(object.get("ids").is_err(), "{odd}");
            assert!(object.get("other").is_ok_and(|value| value.is_none()), "{odd}");
        }
    }

    #[test]
    fn a_document_of_many_fields_costs_no_more_than_its_length() {
        // Each field compared with all others, this would take minutes.
        let fields: Vec<String> = (0..120_000).map(|n| format!("\"{n:x}\":1")).collect();
        let object = Object::parse(format!("{{{}}}", fields.join(",")).as_bytes()).unwrap();
        assert_eq!(object.names().count(), 120_000);
    }

    #[test]
    fn odd_documents_are_named() {
        assert_eq!(Object::parse(br#"{"a":1,"a":2}"#).unwrap_err(), NotAnObject::Duplicate("a".into()));
        assert_eq!(Object::parse(br#"{"a":1,"\u0061":2}"#).unwrap_err(), NotAnObject::Duplicate("a".into()));
        assert_eq!(Object::parse(b"[1]").unwrap_err(), NotAnObject::OtherValue);
        assert_eq!(Object::parse(b"null").unwrap_err(), NotAnObject::OtherValue);
        for bad in [&b"{"[..], b"{}x", b"\xef\xbb\xbf{}", b"{\"a\":NaN}", b""] {
            assert!(matches!(Object::parse(bad), Err(NotAnObject::Malformed(_))), "{bad:?}");
        }
    }
}
