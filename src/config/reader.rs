//! Owns typed reading of TOML with places: tables that know which keys were asked for, and values that
//! report what is wrong with them and let the reader go on.
//! Does not know any key of Tollbridge (the section files do).
//! Invariant: a method that returns `None` for a present value has reported a problem.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::instant::unix_seconds;
use super::problem::{Place, Problem};
use super::secrets::Env;
use super::units::{DURATION, SIZE, Units};
use super::words::{nearest, quoted};

/// The file that is read, and what was found in it so far.
pub(super) struct Source<'a> {
    file: String,
    dir: PathBuf,
    text: &'a str,
    /// Where environment variables come from.
    pub(super) env: &'a dyn Env,
    /// Files that the configuration refers to and that were opened: certificates, keys, secrets.
    opened: RefCell<Vec<PathBuf>>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

/// A value with the byte offset where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// A TOML table under its name.
pub(super) struct Table<'a> {
    pub(super) source: &'a Source<'a>,
    name: String,
    /// Offset of its header or its opening brace.
    pub(super) at: usize,
    rows: &'a DeTable<'a>,
    known: RefCell<Vec<&'static str>>,
}

/// A TOML value under its name.
#[derive(Clone)]
pub(super) struct Value<'a> {
    pub(super) source: &'a Source<'a>,
    /// How messages call it, such as `` `listen` in `[server]` ``.
    pub(super) label: String,
    path: String,
    pub(super) at: usize,
    value: &'a DeValue<'a>,
}

// === impl Source ===

impl<'a> Source<'a> {
    pub(super) fn new(path: &Path, text: &'a str, env: &'a dyn Env) -> Self {
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let file = path.display().to_string();
        let opened = RefCell::default();
        Self { file, dir, text, env, opened, problems: RefCell::default(), warnings: RefCell::default() }
    }

    /// Notes a file whose contents the configuration depends on.
    pub(super) fn depends_on(&self, path: &Path) {
        self.opened.borrow_mut().push(path.to_owned());
    }

    /// The files noted so far.
    pub(super) fn dependencies(&self) -> Vec<PathBuf> {
        self.opened.borrow().clone()
    }

    /// Reports what makes the file unusable.
    pub(super) fn problem(&self, at: usize, message: impl Into<String>, help: Option<String>) {
        self.problems.borrow_mut().push(self.finding(at, message.into(), help));
    }

    /// Reports what an operator should know although the file is usable.
    pub(super) fn warn(&self, at: usize, message: impl Into<String>, help: Option<String>) {
        self.warnings.borrow_mut().push(self.finding(at, message.into(), help));
    }

    /// The line of an offset, for messages that point at a second place.
    pub(super) fn line(&self, at: usize) -> usize {
        Place::of(self.text, at).line
    }

    /// A path as written in the file, relative to the file's directory.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.dir.join(written)
    }

    /// Everything found: problems and warnings, each in file order.
    pub(super) fn findings(self) -> (Vec<Problem>, Vec<Problem>) {
        let in_order = |found: RefCell<Vec<Problem>>| {
            let mut found = found.into_inner();
            found.sort_by_key(|problem| problem.place);
            found
        };
        (in_order(self.problems), in_order(self.warnings))
    }

    fn finding(&self, at: usize, message: String, help: Option<String>) -> Problem {
        Problem { file: self.file.clone(), place: Some(Place::of(self.text, at)), message, help }
    }
}

// === impl Table ===

impl<'a> Table<'a> {
    /// The whole document.
    pub(super) fn root(source: &'a Source<'a>, rows: &'a DeTable<'a>) -> Self {
        Self { source, name: String::new(), at: 0, rows, known: RefCell::default() }
    }

    /// The value of a key, which from now on is a known key of this table.
    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        if !self.known.borrow().contains(&key) {
            self.known.borrow_mut().push(key);
        }
        let (_, value) = self.rows.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(self.value(key, value.span().start, value.get_ref()))
    }

    /// The value of a key that must be there. `example` continues "write".
    pub(super) fn require(&self, key: &'static str, example: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            let message = format!("{} lacks `{key}`", self.label());
            self.source.problem(self.at, message, Some(format!("write `{key} = {example}`")));
        }
        value
    }

    /// The table of a key that must be there. `example` is a line of it.
    pub(super) fn require_section(&self, key: &'static str, example: &str) -> Option<Table<'a>> {
        let value = self.get(key);
        if value.is_none() {
            let message = format!("{} lacks the table `[{key}]`", self.label());
            self.source.problem(self.at, message, Some(format!("write `[{key}]` and below it `{example}`")));
        }
        value?.table()
    }

    /// The table of a key. `None` when absent: its defaults apply.
    pub(super) fn section(&self, key: &'static str) -> Option<Table<'a>> {
        self.get(key)?.table()
    }

    /// The tables of an array of tables, empty when absent or wrong.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let path = value.path.clone();
        let items = value.list("a list of tables").unwrap_or_default();
        items.into_iter().filter_map(|item| item.named_table(format!("[[{path}]]"))).collect()
    }

    /// Every key with its value, for tables whose keys are names.
    pub(super) fn entries(&self) -> Vec<(At<&'a str>, Value<'a>)> {
        let entry = |(key, value): (&'a toml::Spanned<toml::de::DeString<'a>>, &'a toml::Spanned<DeValue<'a>>)| {
            let name: &'a str = key.get_ref();
            (At { value: name, at: key.span().start }, self.value(name, key.span().start, value.get_ref()))
        };
        self.rows.iter().map(entry).collect()
    }

    /// Reports every key that nobody asked for.
    pub(super) fn close(self) {
        let known = self.known.borrow();
        for (key, _) in self.rows.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            let name: &str = key.get_ref();
            let place =
                if self.name.is_empty() { "at the top level".to_owned() } else { format!("in `{}`", self.name) };
            let help = nearest(name, known.iter().copied())
                .unwrap_or_else(|| format!("the keys are {}", quoted(known.iter().copied())));
            self.source.problem(key.span().start, format!("unknown key `{name}` {place}"), Some(help));
        }
    }

    /// How messages call the table.
    pub(super) fn label(&self) -> String {
        if self.name.is_empty() { "the file".to_owned() } else { format!("`{}`", self.name) }
    }

    fn value(&self, key: &str, at: usize, value: &'a DeValue<'a>) -> Value<'a> {
        let inner = self.name.trim_matches(['[', ']']);
        let path = if inner.is_empty() { key.to_owned() } else { format!("{inner}.{key}") };
        let label = if inner.is_empty() { format!("`{key}`") } else { format!("`{key}` in `{}`", self.name) };
        Value { source: self.source, label, path, at, value }
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    /// Reports a problem with this value: the message begins with its label.
    pub(super) fn problem<T>(&self, what: impl AsRef<str>, help: Option<String>) -> Option<T> {
        self.source.problem(self.at, format!("{} {}", self.label, what.as_ref()), help);
        None
    }

    /// Wraps a result with this value's place.
    pub(super) fn at<T>(&self, value: T) -> At<T> {
        At { value, at: self.at }
    }

    /// Reports that the value has the wrong type.
    pub(super) fn wrong_type<T>(&self, expected: &str) -> Option<T> {
        self.problem(format!("must be {expected}, not {}", self.found()), None)
    }

    /// The text, when this is a string. Reports nothing.
    pub(super) fn text(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        }
    }

    /// Says whether this is a table. Reports nothing.
    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Says whether this is a list. Reports nothing.
    pub(super) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    pub(super) fn string(&self, expected: &str) -> Option<&'a str> {
        let text = self.text().or_else(|| self.wrong_type(expected))?;
        if text.is_empty() { self.problem("is empty", Some(format!("it must be {expected}"))) } else { Some(text) }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong_type("`true` or `false`"))
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let Some(integer) = self.value.as_integer() else { return self.wrong_type("a whole number") };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        number.filter(|number| range.contains(number)).or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.problem(format!("is `{integer}`, but must be from `{low}` to `{high}`"), None)
        })
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let range = super::units::millis(*range.start())..=super::units::millis(*range.end());
        self.quantity(&DURATION, range).map(Duration::from_millis)
    }

    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        self.quantity(&SIZE, range)
    }

    /// One of a closed set of words.
    pub(super) fn word<T: Clone>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let names = || words.iter().map(|(name, _)| *name);
        let several = if words.len() > 1 { "one of " } else { "" };
        let expected = format!("{several}{}", quoted(names()));
        let text = self.text().or_else(|| self.wrong_type(&expected))?;
        let found = words.iter().find(|(name, _)| *name == text).map(|(_, meaning)| meaning.clone());
        found.or_else(|| self.problem(format!("is `{text}`, which is not {expected}"), nearest(text, names())))
    }

    pub(super) fn list(&self, expected: &str) -> Option<Vec<Value<'a>>> {
        let Some(items) = self.value.as_array() else { return self.wrong_type(expected) };
        let item = |(index, value): (usize, &'a toml::Spanned<DeValue<'a>>)| Value {
            source: self.source,
            label: format!("item {} of {}", index + 1, self.label),
            path: self.path.clone(),
            at: value.span().start,
            value: value.get_ref(),
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A list of non-empty strings without duplicates.
    pub(super) fn strings(&self, each: &str) -> Option<Vec<At<&'a str>>> {
        let mut seen: Vec<At<&'a str>> = Vec::new();
        for item in self.list(&format!("a list, each item {each}"))? {
            let Some(text) = item.string(each) else { continue };
            if seen.iter().any(|earlier| earlier.value == text) {
                item.problem::<()>(format!("repeats `{text}`"), None);
            }
            seen.push(item.at(text));
        }
        Some(seen)
    }

    pub(super) fn table(&self) -> Option<Table<'a>> {
        self.named_table(format!("[{}]", self.path))
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        let expected = "an address and port such as `\"127.0.0.1:8080\"`";
        let text = self.string(expected)?;
        text.parse().ok().or_else(|| {
            let help = text.starts_with("localhost:").then(|| "write `127.0.0.1` instead of `localhost`".to_owned());
            let help = help.or_else(|| text.starts_with(':').then(|| format!("did you mean `\"0.0.0.0{text}\"`?")));
            self.problem(format!("is `{text}`, which is not {expected}"), help)
        })
    }

    /// An absolute `http` or `https` URL.
    pub(super) fn url(&self) -> Option<url::Url> {
        let expected = "a URL such as `\"https://gateway.example.com\"`";
        let text = self.string(expected)?;
        let web = |url: &url::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let url = url::Url::parse(text).ok().filter(web);
        // What stands before `@` may be a password.
        let shown = if text.contains('@') { "…" } else { text };
        url.or_else(|| self.problem(format!("is `{shown}`, which is not {expected}"), None))
    }

    /// A SHA-256 in hexadecimal digits; `help` says how to make one.
    pub(super) fn sha256(&self, help: &str) -> Option<[u8; 32]> {
        let text = self.string("64 hexadecimal digits")?;
        let mut hash = [0; 32];
        let digits = |pair: &[u8]| {
            let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(digits).collect();
        match bytes {
            Some(bytes) if bytes.len() == hash.len() => {
                hash.copy_from_slice(&bytes);
                Some(hash)
            }
            Some(_) | None => {
                let count = text.chars().count();
                self.problem(
                    format!("has {count} characters, but must be 64 hexadecimal digits"),
                    Some(help.to_owned()),
                )
            }
        }
    }

    /// A path, relative to the file.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.string("a path").map(|written| self.source.path(written))
    }

    /// A point in time, in seconds since the Unix epoch.
    pub(super) fn time(&self) -> Option<u64> {
        let expected = "a time with an offset such as `2027-01-31T00:00:00Z`";
        let DeValue::Datetime(written) = self.value else { return self.wrong_type(expected) };
        unix_seconds(written).or_else(|| self.problem(format!("is `{written}`, which is not {expected}"), None))
    }

    fn named_table(&self, name: String) -> Option<Table<'a>> {
        let Some(rows) = self.value.as_table() else { return self.wrong_type("a table") };
        Some(Table { source: self.source, name, at: self.at, rows, known: RefCell::default() })
    }

    fn quantity(&self, units: &Units, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text().or_else(|| self.wrong_type(units.expected))?;
        let quantity = match units.parse(text) {
            Ok(quantity) => quantity,
            Err(unreadable) => return self.problem(unreadable.what, Some(unreadable.help)),
        };
        if range.contains(&quantity) {
            return Some(quantity);
        }
        let (low, high) = (units.show(*range.start()), units.show(*range.end()));
        self.problem(format!("is `{text}`, but must be from `{low}` to `{high}`"), None)
    }

    fn found(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        }
    }
}

/// A number as a length. Ranges are checked before: this cannot saturate on a 64-bit system.
pub(super) fn narrow(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
