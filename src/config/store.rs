//! Owns `[store]`: where shared or durable state is kept, once `[quota] store` has chosen the kind.
//! Does not open anything.

use crate::store::{self, Settings};

use super::plans::Store;
use super::reader::{Table, Value};

pub(super) fn read(root: &Table<'_>, chosen: Store) -> Settings {
    let section = root.section("store");
    let key = |key: &'static str| section.as_ref().and_then(|table| table.get(key));
    let (file, redis) = (key("file"), key("redis"));
    let lacks = |key: &str, example: &str| {
        let at = root.get("quota").map_or(0, |value| value.at);
        let message = format!("`store` in `[quota]` is `{key}`, but `[store]` has no `{key}`");
        root.source.problem(at, message, Some(format!("write `[store]` and below it `{key} = {example}`")));
    };
    let unused = |value: &Option<Value<'_>>, word: &str| {
        if let Some(value) = value {
            let help = format!("write `store = \"{word}\"` in `[quota]`, or leave it out");
            value.source.warn(value.at, format!("{} is not used", value.label), Some(help));
        }
    };
    let settings = match chosen {
        Store::Memory => Some(Settings::Memory),
        Store::File => match &file {
            Some(value) => value.path().map(Settings::File),
            None => {
                lacks("file", "\"tollbridge.db\"");
                None
            }
        },
        Store::Redis => match &redis {
            Some(value) => address(value),
            None => {
                lacks("redis", "{ env = \"REDIS_URL\" }");
                None
            }
        },
    };
    if chosen != Store::File {
        unused(&file, "file");
    }
    if chosen != Store::Redis {
        unused(&redis, "redis");
    }
    section.into_iter().for_each(Table::close);
    settings.unwrap_or_default()
}

fn address(value: &Value<'_>) -> Option<Settings> {
    let url = value.secret()?.value;
    match store::check_url(&url) {
        Ok(()) => Some(Settings::Redis(url)),
        Err(error) => {
            let help = "such as `redis://:password@redis.internal:6379/0`, `rediss://…` for TLS".to_owned();
            value.problem(format!("refers to a URL that cannot be used: {}", said(&error)), Some(help))
        }
    }
}

fn said(error: &store::OpenError) -> String {
    match error {
        store::OpenError::Url(said) => said.clone(),
        store::OpenError::File { cause, .. } => cause.clone(),
    }
}
