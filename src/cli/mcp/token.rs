//! Owns the credential that the bridge shows: from a file, which is read again when it changes, or from the environment.
//! Does not know what it is worth: the server says.
//! Invariant: nothing of it is printed.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::HeaderValue;
use parking_lot::Mutex;

use super::trouble::Trouble;
use crate::config::{Env, ProcessEnv};

/// Where a token is looked for when no file is named.
pub(super) const VARIABLE: &str = "TOLLBRIDGE_TOKEN";
/// Largest token file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Where the token comes from.
#[derive(Debug)]
pub(super) enum Token {
    /// There is none.
    Absent,
    /// The environment's.
    Fixed(HeaderValue),
    /// A file's.
    File(PathBuf, Mutex<Option<Known>>),
}

/// What a file held when it was last read.
#[derive(Debug)]
pub(super) struct Known {
    stamp: Option<(SystemTime, u64)>,
    value: HeaderValue,
}

// === impl Token ===

impl Token {
    /// The token of a file, else of the environment.
    ///
    /// # Errors
    /// A sentence when the environment's cannot be a token. A file may come later.
    pub(super) fn from(file: Option<&Path>) -> Result<Self, String> {
        if let Some(file) = file {
            return Ok(Self::File(file.to_owned(), Mutex::new(None)));
        }
        match ProcessEnv.var(VARIABLE).filter(|text| !text.trim().is_empty()) {
            None => Ok(Self::Absent),
            Some(text) => header(&text).map(Self::Fixed).ok_or_else(|| {
                format!(
                    "`{VARIABLE}` has characters that no token has\nhelp: set it to the bare token, without `Bearer`"
                )
            }),
        }
    }

    /// The value of `Authorization`, if there is a token.
    ///
    /// # Errors
    /// [`Trouble`] when the file cannot be read or holds no token.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, Trouble> {
        match self {
            Self::Absent => Ok(None),
            Self::Fixed(value) => Ok(Some(value.clone())),
            Self::File(path, known) => {
                let stamp = stamp(path);
                let mut known = known.lock();
                if let Some(known) = &*known
                    && known.stamp == stamp
                    && stamp.is_some()
                {
                    return Ok(Some(known.value.clone()));
                }
                let value = read(path)?;
                *known = Some(Known { stamp, value: value.clone() });
                Ok(Some(value))
            }
        }
    }

    /// Reads the file again, whatever its time says; tells whether it holds another token than this one.
    pub(super) fn differs_from(&self, used: Option<&HeaderValue>) -> bool {
        if let Self::File(_, known) = self {
            *known.lock() = None;
        }
        matches!(self.authorization(), Ok(Some(now)) if Some(&now) != used)
    }

    /// What to do when the server refuses it.
    pub(super) fn help(&self) -> String {
        match self {
            Self::Absent => format!("give a token with --token-file FILE, or in `{VARIABLE}`"),
            Self::Fixed(_) => {
                format!("set `{VARIABLE}` to a token that is good, and restart this server in your client")
            }
            Self::File(path, _) => {
                format!("write a token that is good to `{}`: it is read again at the next message", path.display())
            }
        }
    }

    /// Something that the user should know of the file.
    pub(super) fn warning(&self) -> Option<String> {
        use std::os::unix::fs::PermissionsExt as _;
        let Self::File(path, _) = self else { return None };
        let mode = fs::metadata(path).ok()?.permissions().mode();
        (mode & 0o077 != 0)
            .then(|| format!("`{0}` can be read by others on this machine\nhelp: chmod 600 `{0}`", path.display()))
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(path: &Path) -> Result<HeaderValue, Trouble> {
    let named = |what: &str, help: &str| Trouble::token(format!("the token file `{}` {what}", path.display()), help);
    let file = fs::File::open(path).map_err(|error| {
        named(&format!("cannot be read: {error}"), "write a token to it, or name another with --token-file")
    })?;
    let mut text = String::new();
    let length = file
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| named(&format!("cannot be read: {error}"), "write one token to it, as text"))?;
    if length as u64 > FILE_BYTES_MAX {
        return Err(named("is larger than 64KiB", "write one token to it, and nothing else"));
    }
    header(&text).ok_or_else(|| named("holds no token", "write the bare token to it, without `Bearer`"))
}

/// `Bearer …`; `None` when the text is no token (RFC 6750 §2.1).
fn header(text: &str) -> Option<HeaderValue> {
    let text = text.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if text.is_empty() || !text.bytes().all(plain) {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path) -> Token {
        Token::from(Some(path)).unwrap()
    }

    #[test]
    fn a_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = file(&path);
        assert!(token.authorization().unwrap_err().to_string().contains("cannot be read"));
        fs::write(&path, "first\n").unwrap();
        assert_eq!(token.authorization().unwrap().unwrap(), "Bearer first");
        fs::write(&path, "the-second").unwrap();
        assert_eq!(token.authorization().unwrap().unwrap(), "Bearer the-second");
    }

    #[test]
    fn a_refused_token_is_compared_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "same-length-1").unwrap();
        let token = file(&path);
        let used = token.authorization().unwrap();
        assert!(!token.differs_from(used.as_ref()));
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "same-length-2").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert!(token.differs_from(used.as_ref()), "a time that did not move hides nothing");
        assert_eq!(token.authorization().unwrap().unwrap(), "Bearer same-length-2");
    }

    #[test]
    fn what_is_no_token_is_named_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for text in ["", " \n", "Bearer secret", "sécret", "a\nb"] {
            fs::write(&path, text).unwrap();
            let trouble = file(&path).authorization().unwrap_err().to_string();
            assert!(trouble.contains("holds no token") && !trouble.contains("cret"), "{trouble}");
        }
        fs::write(&path, "x".repeat(70_000)).unwrap();
        assert!(file(&path).authorization().unwrap_err().to_string().contains("larger than 64KiB"));
        fs::write(&path, "secret-token").unwrap();
        let token = file(&path);
        token.authorization().unwrap();
        assert!(!format!("{token:?}").contains("secret-token"));
    }
}
