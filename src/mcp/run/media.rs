//! Owns what a run made besides text: images, videos, audio and files, read from AgentOS's shapes.
//! Does not fetch anything: media that stand elsewhere keep their address.
//! Invariant: a medium's number is its place in the run, the same in every result and for every reader.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::{ContentBlock, Resource, ResourceContents};
use serde_json::Value;

use crate::mcp::text;

/// Most media of one run that are shown.
const MEDIA_MAX: usize = 32;
/// Most base64 in one result; larger media become links.
const INLINE_BYTES_MAX: usize = 1_000_000;
/// Longest text file that stands in a result: the model reads it whether it can follow links or not.
const FILE_BYTES_MAX: usize = 32 * 1024;
const NAME_CHARS_MAX: usize = 120;
const ADDRESS_CHARS_MAX: usize = 2_000;

/// One image, video, sound or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Media {
    pub(crate) form: Form,
    pub(crate) mime: String,
    pub(crate) name: String,
    source: Source,
}

/// What sort of medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Image,
    Video,
    Audio,
    File,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// As AgentOS gives it: base64, or plain text for text files.
    Inline(String),
    /// Somewhere on the web.
    Address(String),
    /// AgentOS kept it to itself.
    Absent,
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
    let source = match (field("content"), field("url")) {
        (Some(content), _) => Source::Inline(content.to_owned()),
        (None, Some(address)) => Source::Address(address.to_owned()),
        (None, None) => Source::Absent,
    };
    let name = field("filename").or_else(|| field("name")).map(|name| text::head(&text::line(name), NAME_CHARS_MAX));
    Media {
        form,
        mime: mime.unwrap_or_else(|| form.mime(field("format"))),
        name: name.unwrap_or_else(|| format!("{}-{at}", form.word())),
        source,
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

/// Content blocks of all media; `address` says where the medium of a number can be read.
pub(crate) fn blocks(media: &[Media], address: impl Fn(usize) -> Option<String>) -> Vec<ContentBlock> {
    let mut room = INLINE_BYTES_MAX;
    let mut blocks = Vec::with_capacity(media.len());
    for (at, medium) in media.iter().enumerate() {
        let address = address(at);
        match medium.inline(room, address.as_deref()) {
            Some((block, bytes)) => {
                room -= bytes;
                blocks.push(block);
            }
            None => blocks.push(medium.link(address)),
        }
    }
    blocks
}

// === impl Media ===

impl Media {
    /// The bytes, where AgentOS gave them.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        let Source::Inline(content) = &self.source else { return None };
        if self.is_text() {
            return Some(content.clone().into_bytes());
        }
        Some(STANDARD.decode(content).unwrap_or_else(|_| content.clone().into_bytes()))
    }

    /// A text file comes as its text, and may look like base64 by chance.
    fn is_text(&self) -> bool {
        self.form == Form::File && self.mime.starts_with("text/")
    }

    /// The block, when a client shows it by itself and there is room.
    fn inline(&self, room: usize, address: Option<&str>) -> Option<(ContentBlock, usize)> {
        let Source::Inline(content) = &self.source else { return None };
        let base64 = || STANDARD.decode(content).is_ok();
        let (block, fits) = match self.form {
            Form::Image => (ContentBlock::image(content.as_str(), self.mime.as_str()), base64()),
            Form::Audio => (ContentBlock::audio(content.as_str(), self.mime.as_str()), base64()),
            Form::File if self.is_text() => {
                let text = ResourceContents::text(content.as_str(), address?).with_mime_type(self.mime.as_str());
                (ContentBlock::resource(text), content.len() <= FILE_BYTES_MAX)
            }
            Form::Video | Form::File => return None,
        };
        (content.len() <= room && fits).then_some((block, content.len()))
    }

    fn link(&self, address: Option<String>) -> ContentBlock {
        match (&self.source, address) {
            (Source::Inline(_), Some(address)) => {
                let mut resource = Resource::new(address, self.name.as_str());
                resource.mime_type = Some(self.mime.clone());
                resource.size = self.bytes().map(|bytes| bytes.len() as u64);
                ContentBlock::resource_link(resource)
            }
            // What an agent says about the web is text: nobody here vouches for the address.
            (Source::Address(address), _) => {
                let address = text::head(&text::line(address), ADDRESS_CHARS_MAX);
                ContentBlock::text(format!("[{} `{}`: {address}]", self.form.word(), self.name))
            }
            (Source::Inline(_) | Source::Absent, _) => ContentBlock::text(format!(
                "[{} `{}` ({}): not available here]",
                self.form.word(),
                self.name,
                self.mime
            )),
        }
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

    fn shown(run: Value) -> Vec<Value> {
        let blocks = blocks(&of(&run), |at| Some(format!("agno://runs/h/media/{at}")));
        blocks.into_iter().map(|block| serde_json::to_value(block).unwrap()).collect()
    }

    #[test]
    fn images_sounds_and_short_texts_are_shown_and_the_rest_is_linked() {
        let run = json!({
            "images": [{"id": "i", "content": "aGk=", "mime_type": "image/webp"}, {"url": "https://x.test/a\u{202e}.png"}],
            "videos": [{"content": "aGk="}],
            "audio": null,
            "files": [{"content": "a,b\n", "mime_type": "text/csv", "filename": "t\n.csv"}, {"id": "f"},
                {"content": "aGk=", "mime_type": "application/pdf", "filename": "t\n.pdf"}],
            "response_audio": {"content": "aGk=", "format": "mp3"},
        });
        assert_eq!(
            shown(run),
            [
                json!({"type": "image", "data": "aGk=", "mimeType": "image/webp"}),
                json!({"type": "text", "text": "[image `image-1`: https://x.test/a.png]"}),
                json!({"type": "resource_link", "uri": "agno://runs/h/media/2", "name": "video-2",
                    "mimeType": "video/mp4", "size": 2}),
                json!({"type": "resource", "resource": {"uri": "agno://runs/h/media/3", "mimeType": "text/csv",
                    "text": "a,b\n"}}),
                json!({"type": "text", "text": "[file `file-4` (application/octet-stream): not available here]"}),
                json!({"type": "resource_link", "uri": "agno://runs/h/media/5", "name": "t .pdf",
                    "mimeType": "application/pdf", "size": 2}),
                json!({"type": "audio", "data": "aGk=", "mimeType": "audio/mpeg"}),
            ]
        );
    }

    #[test]
    fn what_is_too_large_or_no_base64_is_linked() {
        let large = "A".repeat(INLINE_BYTES_MAX - 2);
        let text = |bytes: usize| json!({"content": "x".repeat(bytes), "mime_type": "text/plain"});
        let run = json!({
            "images": [{"content": "aGk="}, {"content": large}, {"content": "no base64!"}],
            "files": [text(FILE_BYTES_MAX), text(FILE_BYTES_MAX + 1)],
        });
        let kinds: Vec<Value> = shown(run).into_iter().map(|block| block["type"].clone()).collect();
        assert_eq!(kinds, ["image", "resource_link", "resource_link", "resource", "resource_link"]);
    }

    #[test]
    fn a_run_without_media_has_none() {
        assert_eq!(of(&json!({"images": [], "files": null, "content": "x"})), []);
        let many: Vec<Value> = (0..100).map(|_| json!({"content": "aGk="})).collect();
        assert_eq!(of(&json!({"images": many})).len(), MEDIA_MAX);
    }
}
