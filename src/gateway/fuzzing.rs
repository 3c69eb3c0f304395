//! Owns what must hold for any request body, for the fuzz targets. Compiled with the feature `fuzzing` only.
//! Does not generate inputs. Invariant: a broken promise is a panic.

use super::form::{Field, Form, Outgoing};
use super::json::Object;
use super::multipart::{Event, Malformed, Parser};

/// Reads `content type, line feed, body` as multipart, whole and in pieces, and reads again what would go upstream.
///
/// # Panics
/// When the pieces matter, or AgentOS would be sent other fields than were decided on.
pub fn multipart(data: &[u8]) {
    let at = memchr::memchr(b'\n', data).unwrap_or(0);
    let (content_type, body) = data.split_at(at);
    let (content_type, body) = (String::from_utf8_lossy(content_type), body.get(1..).unwrap_or_default());
    let whole = parse(&content_type, body, body.len().max(1));
    for size in [1, 7] {
        let pieces = parse(&content_type, body, size);
        // Where it breaks may depend on how much has come; what it says must not.
        assert_eq!(pieces.as_ref().ok(), whole.as_ref().ok(), "pieces of {size}");
    }
    if let Ok(fields) = whole {
        round_trip(Form::new(fields.clone(), true, None), &fields);
    }
}

/// Reads an urlencoded form and reads again what would go upstream.
///
/// # Panics
/// When AgentOS would be sent other fields than were decided on.
pub fn urlencoded(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let form = Form::urlencoded(text.as_bytes());
    let names: Vec<String> = form.names().map(str::to_owned).collect();
    let (_, Outgoing::Whole(sent)) = form.into_outgoing() else { panic!("an urlencoded form streams") };
    let again = Form::urlencoded(&sent);
    assert!(names.is_empty() || again.names().eq(names.iter().map(String::as_str)), "{names:?}");
}

/// Reads a JSON body and reads again what would go upstream.
///
/// # Panics
/// When a name stands twice, or AgentOS would be sent other fields than were decided on.
pub fn json(data: &[u8]) {
    let Ok(mut object) = Object::parse(data) else { return };
    object.set("user_id", &serde_json::Value::from("acme~alice"));
    let names: Vec<String> = object.names().map(str::to_owned).collect();
    let again = Object::parse(&object.to_bytes());
    let Ok(again) = again else { panic!("what we write does not parse: {again:?}") };
    assert!(again.names().eq(names.iter().map(String::as_str)), "{names:?}");
    assert!(again.get("user_id").is_ok_and(|user| user == Some("acme~alice".into())));
}

fn parse(content_type: &str, body: &[u8], size: usize) -> Result<Vec<Field>, Malformed> {
    let mut parser = Parser::for_content_type(content_type)?;
    let mut fields: Vec<(Field, Vec<u8>)> = Vec::new();
    for piece in body.chunks(size) {
        parser.feed(piece);
        while let Some(event) = parser.next()? {
            match event {
                Event::Part(head) => fields.push((Field { head, value: Vec::new() }, Vec::new())),
                Event::Data(data) => {
                    if let Some((_, value)) = fields.last_mut() {
                        value.extend_from_slice(&data);
                    }
                }
                Event::PartEnd | Event::End => {}
            }
        }
    }
    parser.finish()?;
    Ok(fields.into_iter().map(|(field, value)| Field { value: vec![value.into()], ..field }).collect())
}

fn round_trip(form: Form, fields: &[Field]) {
    let (content_type, Outgoing::Whole(sent)) = form.into_outgoing() else { panic!("a whole form streams") };
    let again = parse(&content_type, &sent, sent.len().max(1));
    assert_eq!(again.as_deref(), Ok(fields), "sent {:?}", String::from_utf8_lossy(&sent));
}
