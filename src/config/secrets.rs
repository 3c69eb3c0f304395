//! Owns how the configuration refers to secrets: `{ env = "NAME" }` or `{ file = "path" }`, never inline.
//! Does not know what a secret is for.
//! Invariant: no problem or warning made here holds the secret, not even a refused inline one.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use crate::secret::Secret;

use super::reader::{At, Value};

/// Largest secret file; a key or a PEM chain is far smaller.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Longest name of a variable; keys in hexadecimal are longer.
const NAME_BYTES_MAX: usize = 60;

/// Where environment variables come from. Tests pass a map.
pub trait Env {
    /// The value of a variable, or `None` when it is unset or not UTF-8.
    fn var(&self, name: &str) -> Option<String>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var_os(name)?.into_string().ok()
    }
}

impl Env for std::collections::BTreeMap<String, String> {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}

impl Value<'_> {
    /// The secret that this value refers to.
    pub(super) fn secret(&self) -> Option<At<Secret>> {
        if !self.is_table() {
            let help =
                "write `{ env = \"NAME\" }` or `{ file = \"path\" }` and keep the secret itself out of this file";
            return match self.text() {
                Some(_) => self.problem("holds a secret inline", Some(help.to_owned())),
                None => self.wrong_type("`{ env = \"NAME\" }` or `{ file = \"path\" }`"),
            };
        }
        let table = self.table()?;
        let (env, file) = (table.get("env"), table.get("file"));
        table.close();
        match (env, file) {
            (Some(env), None) => self.secret_of_variable(env.string("the name of an environment variable")?),
            (None, Some(file)) => self.secret_of_file(file.string("a path")?),
            (Some(_), Some(_)) => self.problem("names both `env` and `file`", Some("keep one of them".to_owned())),
            (None, None) => self.problem("names no secret", Some("write `{ env = \"NAME\" }`".to_owned())),
        }
    }

    fn secret_of_variable(&self, name: &str) -> Option<At<Secret>> {
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let plain = first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !plain || name.len() > NAME_BYTES_MAX {
            // The text is not repeated: it may be the secret itself.
            let help = "write the variable's name, not its value: letters, digits and `_`".to_owned();
            return self.problem("refers to something that is no environment variable", Some(help));
        }
        match self.source.env.var(name) {
            Some(value) if !value.is_empty() => Some(self.at(Secret::new(value))),
            Some(_) => {
                self.problem(format!("refers to the environment variable `{name}`, which is empty"), export_help(name))
            }
            None => self
                .problem(format!("refers to the environment variable `{name}`, which is not set"), export_help(name)),
        }
    }

    fn secret_of_file(&self, written: &str) -> Option<At<Secret>> {
        let path = self.source.path(written);
        self.source.depends_on(&path);
        let bytes = match read_capped(&path) {
            Ok(bytes) => bytes,
            Err(cause) => return self.problem(format!("refers to the file `{written}`: {cause}"), None),
        };
        let secret = match bytes.strip_suffix(b"\n") {
            Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
            None => &bytes,
        };
        if secret.is_empty() {
            return self.problem(format!("refers to the file `{written}`, which is empty"), None);
        }
        if !is_public(secret) && world_readable(&path) {
            let message = format!("{} refers to the file `{written}`, which everybody may read", self.label);
            self.source.warn(self.at, message, Some(format!("run `chmod 600 {written}`")));
        }
        Some(self.at(Secret::new(secret)))
    }
}

/// Says whether the secret is a PEM document (a key or certificate), not a shared secret.
pub(super) fn is_pem(secret: &Secret) -> bool {
    secret.expose().trim_ascii_start().starts_with(b"-----BEGIN ")
}

/// A public key or certificate in PEM is no secret.
fn is_public(bytes: &[u8]) -> bool {
    let has = |needle: &[u8]| memchr::memmem::find(bytes, needle).is_some();
    bytes.trim_ascii_start().starts_with(b"-----BEGIN ") && !has(b"PRIVATE KEY-----")
}

fn export_help(name: &str) -> Option<String> {
    Some(format!("run `export {name}=…` before starting, or write `{{ file = \"path\" }}`"))
}

/// Why a file cannot be read, in an operator's words.
pub(super) fn unreadable(error: std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => error.to_string(),
    }
}

fn read_capped(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err("larger than 64KiB".to_owned()) } else { Ok(bytes) }
}

#[cfg(unix)]
fn world_readable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn world_readable(_: &Path) -> bool {
    false
}
