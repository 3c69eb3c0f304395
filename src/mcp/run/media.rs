//! Owns what a run made besides text: images, videos, audio and files, read from AgentOS's shapes.
//! Does not fetch anything: media that stand elsewhere keep their address.
//! Invariant: a medium's number is its place in the run, the same in every result and for every reader.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::mcp::text;

/// Most media of one run that are shown.
const MEDIA_MAX: usize = 32;
const NAME_CHARS_MAX: usize = 120;

/// One image, video, sound or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Media {
    pub(crate) form: Form,
    pub(crate) mime: String,
    pub(crate) name: String,
    /// As AgentOS gives it: base64, or plain text for text files. `None` for what stands elsewhere.
    content: Option<String>,
}

/// What sort of medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Image,
    Video,
    Audio,
    File,
}

/// Everything that a terminal event or a stored run holds, in a fixed order.
pub(crate) fn of(run: &Value) -> Vec<Media> {
    let lists = [(Form::Image, "images"), (Form::Video, "videos"), (Form::Audio, "audio"), (Form::File, "files")];
    let items = lists.into_iter().flat_map(|(form, field)| {
        let list = run.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().map(move |item| (form, item))
    });
    let spoken = run.get("response_audio").filter(|audio| audio.is_object()).map(|audio| (Form::Audio, audio));
    items.chain(spoken).take(MEDIA_MAX).enumerate().map(|(at, (form, item))| read(form, at, item)).collect()
}

fn read(form: Form, at: usize, item: &Value) -> Media {
    let field = |name: &str| item.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let mime = field("mime_type").filter(|mime| is_mime(mime)).map(str::to_owned);
    let name = field("filename").or_else(|| field("name")).map(|name| text::head(&text::line(name), NAME_CHARS_MAX));
    Media {
        form,
        mime: mime.unwrap_or_else(|| form.mime(field("format"))),
        name: name.unwrap_or_else(|| format!("{}-{at}", form.word())),
        content: field("content").map(str::to_owned),
    }
}

/// `type/subtype`, as clients take it.
fn is_mime(text: &str) -> bool {
    let token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_');
    text.len() <= 100
        && text
            .split_once('/')
            .is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && (a.to_owned() + b).chars().all(token))
}

// === impl Media ===

impl Media {
    /// The bytes, where AgentOS gave them.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        let content = self.content.as_ref()?;
        // A text file comes as its text, and may look like base64 by chance.
        if self.form == Form::File && self.mime.starts_with("text/") {
            return Some(content.clone().into_bytes());
        }
        Some(STANDARD.decode(content).unwrap_or_else(|_| content.clone().into_bytes()))
    }
}

// === impl Form ===

impl Form {
    fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
            Self::File => "file",
        }
    }

    /// The type when AgentOS names none.
    fn mime(self, format: Option<&str>) -> String {
        let format = format.map(str::to_ascii_lowercase);
        let (family, default) = match self {
            Self::Image => ("image", "png"),
            Self::Video => ("video", "mp4"),
            Self::Audio => ("audio", "wav"),
            Self::File => return "application/octet-stream".to_owned(),
        };
        let subtype = match format.as_deref() {
            Some("jpg") => "jpeg",
            Some("mp3") => "mpeg",
            Some(other) => other,
            None => default,
        };
        let mime = format!("{family}/{subtype}");
        if is_mime(&mime) { mime } else { format!("{family}/{default}") }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn media_are_numbered_in_a_fixed_order() {
        let run = json!({
            "images": [{"id": "i", "content": "aGk=", "mime_type": "image/webp"}, {"url": "https://x.test/a.png"}],
            "audio": null,
            "files": [{"content": "a,b", "mime_type": "text/csv", "filename": "t\n.csv"}],
            "response_audio": {"content": "aGk=", "format": "mp3"},
        });
        let media = of(&run);
        let told: Vec<_> = media.iter().map(|m| (m.name.as_str(), m.mime.as_str(), m.bytes())).collect();
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(
            told,
            [
                ("image-0", "image/webp", bytes("hi")),
                ("image-1", "image/png", None),
                ("t .csv", "text/csv", bytes("a,b")),
                ("audio-3", "audio/mpeg", bytes("hi")),
            ]
        );
    }

    #[test]
    fn a_run_without_media_has_none() {
        assert_eq!(of(&json!({"images": [], "files": null, "content": "x"})), []);
        let many: Vec<Value> = (0..100).map(|_| json!({"content": "aGk="})).collect();
        assert_eq!(of(&json!({"images": many})).len(), MEDIA_MAX);
    }
}
