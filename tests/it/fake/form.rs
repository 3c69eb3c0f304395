//! Owns reading a form of a recorded request, multipart or urlencoded, in the order it was sent.
//! Does not forgive: a malformed form panics, because a proxy must not produce one.

use std::collections::BTreeMap;

/// The fields of a form, in order; a file part counts with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Form(pub(crate) Vec<(String, String)>);

impl Form {
    /// Reads a body by its content type.
    pub(super) fn parse(content_type: &str, body: &[u8]) -> Self {
        if let Some((_, boundary)) = content_type.split_once("boundary=") {
            return Self(multipart(boundary.trim_matches('"'), &String::from_utf8_lossy(body)));
        }
        Self(url::form_urlencoded::parse(body).into_owned().collect())
    }

    /// The one value of a field.
    ///
    /// # Panics
    /// When the field came twice: a proxy that lets a caller duplicate a field has failed its test.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(other, _)| other == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "field `{name}` came more than once: {:?}", self.0);
        value
    }

    /// The fields by name, for whole-value comparison.
    pub(crate) fn to_map(&self) -> BTreeMap<&str, &str> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

fn multipart(boundary: &str, body: &str) -> Vec<(String, String)> {
    let body = format!("\r\n{body}");
    let delimiter = format!("\r\n--{boundary}");
    let mut parts = body.split(&delimiter);
    assert_eq!(parts.next(), Some(""), "a multipart body starts with its boundary");
    let mut fields = Vec::new();
    for part in parts {
        if part.starts_with("--") {
            return fields;
        }
        let (head, value) = part.split_once("\r\n\r\n").unwrap();
        let name = head.split("name=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        fields.push((name.to_owned(), value.to_owned()));
    }
    panic!("a multipart body ends with its closing boundary: {body}");
}
