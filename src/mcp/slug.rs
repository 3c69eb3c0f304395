//! Owns how components get names that every client takes: lower-case letters, digits and underscores.
//! Does not look components up (`viewer`).
//! Invariant: names are unique among those they were made with, and the same whenever the same are given.

use std::collections::HashMap;

/// Longest name: with `ask_` before it, it stays within the 40 characters that a tool name may have.
pub(super) const SLUG_CHARS_MAX: usize = 36;

/// A name for each of these, in their order: what it is called, and what tells it from all others. Those that would be
/// equal or too long end in a hash of the latter.
pub(super) fn slugs<'a>(names: impl Iterator<Item = (&'a str, String)>) -> Vec<String> {
    let (names, keys): (Vec<&str>, Vec<String>) = names.unzip();
    let plain: Vec<String> = names.iter().map(|name| plain(name)).collect();
    for digits in [4, 8, 16] {
        let mut counts: HashMap<&str, usize> = HashMap::with_capacity(plain.len());
        plain.iter().for_each(|slug| *counts.entry(slug).or_default() += 1);
        let named = plain.iter().zip(&keys).map(|(slug, key)| {
            // What looks hashed is hashed as well: nobody may choose the name that another one has got.
            let fits = slug.len() <= SLUG_CHARS_MAX && counts.get(slug.as_str()) == Some(&1) && !looks_hashed(slug);
            if fits { slug.clone() } else { hashed(slug, key, digits) }
        });
        let named: Vec<String> = named.collect();
        let distinct: std::collections::HashSet<&String> = named.iter().collect();
        if distinct.len() == named.len() {
            return named;
        }
    }
    // Two names that agree in 64 bits of their hash: their places tell them apart.
    plain.iter().enumerate().map(|(n, slug)| hashed(slug, &n.to_string(), 16)).collect()
}

fn plain(name: &str) -> String {
    let mut slug = String::with_capacity(name.len());
    for c in name.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => slug.push(c),
            _ if slug.is_empty() || slug.ends_with('_') => {}
            _ => slug.push('_'),
        }
    }
    let slug = slug.trim_end_matches('_');
    if slug.is_empty() { "agent".to_owned() } else { slug.to_owned() }
}

fn hashed(slug: &str, name: &str, digits: usize) -> String {
    let hex = format!("{:016x}", fnv(name));
    let (hex, room) = (hex.get(..digits).unwrap_or(&hex), SLUG_CHARS_MAX - digits - 1);
    let kept: String = slug.chars().take(room).collect();
    format!("{}_{hex}", kept.trim_end_matches('_'))
}

fn looks_hashed(slug: &str) -> bool {
    let tail = slug.rsplit_once('_').map_or("", |(_, tail)| tail);
    matches!(tail.len(), 4 | 8 | 16) && tail.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// FNV-1a: the same in every process and version, which the standard library's hasher does not promise.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<String> {
        slugs(names.iter().map(|name| (*name, (*name).to_owned())))
    }

    #[test]
    fn names_are_plain_short_and_distinct() {
        assert_eq!(of(&["Web Search", "daily-report", "__x__", "äö"]), ["web_search", "daily_report", "x", "agent"]);
        let same = of(&["web-a", "web_a", "web.b"]);
        assert_eq!(same[2], "web_b");
        assert!(same[0] != same[1] && same.iter().take(2).all(|slug| slug.starts_with("web_a_") && slug.len() == 10));
        let long = "a".repeat(60);
        let cut = of(&[&long, &format!("{long}b"), "web"]);
        assert!(cut[0] != cut[1] && cut.iter().all(|slug| slug.len() <= SLUG_CHARS_MAX), "{cut:?}");
        assert_eq!(of(&[&long]), of(&[&long]), "the same whenever it is made");
    }

    #[test]
    fn a_name_that_another_one_was_given_cannot_be_chosen() {
        let long = "a".repeat(60);
        let given = of(&[&long]).remove(0);
        let both = of(&[&long, &given]);
        assert_eq!(both[0], given);
        assert_ne!(both[1], given);
    }

    #[test]
    fn equal_names_are_told_apart_by_their_keys() {
        let two = slugs(
            [("web", "agent/web".to_owned()), ("web", "team/web".to_owned()), ("arc", "agent/arc".to_owned())]
                .into_iter(),
        );
        assert!(two[0] != two[1] && two[0].starts_with("web_") && two[1].starts_with("web_"), "{two:?}");
        assert_eq!(two[2], "arc");
    }

    #[test]
    fn a_name_that_looks_like_anothers_hash_is_told_apart() {
        let hashed = of(&["web-a", "web_a"])[0].clone();
        let three = of(&["web-a", "web_a", &hashed]);
        let distinct: std::collections::HashSet<&String> = three.iter().collect();
        assert_eq!(distinct.len(), 3, "{three:?}");
    }
}
