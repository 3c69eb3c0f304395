//! Owns the files that a caller gives to a run: read from base64 or from a run of its own, written as a form.
//! Does not fetch addresses of the web: AgentOS would do so from inside.
//! Invariant: files are few and small enough for one MCP message; a link is opened with the caller's own handle.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::arguments::FileArgument;
use super::runs::stored;
use crate::mcp::ask::{AskBody, Failure};
use crate::mcp::run::media;
use crate::mcp::text;
use crate::mcp::visit::Visit;

/// Most files of one run.
pub(super) const FILES_MAX: usize = 8;
/// All files of one run together. Base64 of it fits into one MCP message.
pub(super) const BYTES_MAX: usize = 2 * 1024 * 1024;
const NAME_CHARS_MAX: usize = 120;

/// One file.
pub(super) struct File {
    name: String,
    mime: String,
    bytes: Vec<u8>,
}

/// Reads all files.
///
/// # Errors
/// A text for the model that names the file and what is wrong with it.
pub(super) async fn read(visit: &Visit, files: Vec<FileArgument>) -> Result<Vec<File>, Failure> {
    if files.len() > FILES_MAX {
        return Err(Failure::Argument(format!("at most {FILES_MAX} `files`")));
    }
    let mut all = Vec::with_capacity(files.len());
    let mut left = BYTES_MAX;
    for file in files {
        let file = one(visit, file).await?;
        left = left.checked_sub(file.bytes.len()).ok_or_else(|| {
            Failure::Argument(format!("the `files` are too large: at most {} MiB together", BYTES_MAX >> 20))
        })?;
        all.push(file);
    }
    Ok(all)
}

async fn one(visit: &Visit, file: FileArgument) -> Result<File, Failure> {
    match (file.data, file.uri) {
        (Some(data), None) => {
            let name = named(file.name.as_deref().unwrap_or_default())?;
            let bytes = STANDARD.decode(data.trim()).map_err(|_| wrong(&name, "`data` is no base64"))?;
            Ok(File { mime: mime_of(&name, file.mime_type)?, name, bytes })
        }
        (None, Some(uri)) => linked(visit, &uri, file.name, file.mime_type).await,
        (Some(_), Some(_)) | (None, None) => {
            Err(Failure::Argument("each of `files` needs either `data` or `uri`".to_owned()))
        }
    }
}

/// What an earlier run of the caller made.
async fn linked(visit: &Visit, uri: &str, name: Option<String>, mime_type: Option<String>) -> Result<File, Failure> {
    let shown = text::head(&text::line(uri), 80);
    let parts = uri.strip_prefix("agno://runs/").and_then(|rest| rest.split_once("/media/"));
    let parts = parts.and_then(|(run, number)| Some((run, number.parse::<usize>().ok()?)));
    let Some((run, number)) = parts else {
        return Err(wrong(&shown, "`uri` must be the address of what a run made, agno://runs/…/media/…"));
    };
    let handle = visit.run(run)?;
    let run = stored(visit, &handle).await?;
    let media = media::of(&run);
    let medium = media.get(number).ok_or_else(|| wrong(&shown, "the run made nothing of that number"))?;
    let bytes = medium.bytes().ok_or_else(|| wrong(&shown, "what the run made is kept elsewhere"))?;
    let name = named(name.as_deref().unwrap_or(&medium.name))?;
    let mime = mime_of(&name, Some(mime_type.unwrap_or_else(|| medium.mime.clone())))?;
    Ok(File { name, mime, bytes })
}

fn wrong(what: &str, why: &str) -> Failure {
    Failure::Argument(format!("file `{what}`: {why}"))
}

/// A name that fits between quotes in a form.
fn named(name: &str) -> Result<String, Failure> {
    let plain = |c: char| !c.is_control() && !matches!(c, '"' | '\\' | '/');
    let fits = (1..=NAME_CHARS_MAX).contains(&name.chars().count()) && name.chars().all(plain);
    if fits && !matches!(name, "." | "..") {
        return Ok(name.to_owned());
    }
    Err(wrong(&text::head(&text::line(name), 40), "`name` must be a plain file name"))
}

fn mime_of(name: &str, given: Option<String>) -> Result<String, Failure> {
    let token = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_'))
    };
    let is_mime = |text: &str| text.len() <= 100 && text.split_once('/').is_some_and(|(a, b)| token(a) && token(b));
    match given {
        Some(mime) if is_mime(&mime) => Ok(mime),
        Some(_) => Err(wrong(name, "`mime_type` must be a type such as text/plain")),
        None => Err(wrong(name, "`mime_type` is missing")),
    }
}

/// A form of fields and files. Fields come first: the gateway reads a large form only so far before it decides.
pub(super) fn form(fields: &[(&str, &str)], files: &[File]) -> AskBody {
    let boundary = format!("tollbridge-{}", uuid::Uuid::new_v4().simple());
    let mut body = Vec::new();
    for (name, value) in fields {
        let head = format!("--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(value.as_bytes());
        body.extend_from_slice(b"\r\n");
    }
    for File { name, mime, bytes } in files {
        let head = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"files\"; filename=\"{name}\"\r\n\
             content-type: {mime}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    AskBody::Multipart { boundary, body: Bytes::from(body) }
}
