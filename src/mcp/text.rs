//! Owns how text is cut and cleaned before it reaches a client.
//! Does not know what the text means.
//! Invariant: a cut never splits a character.

/// Largest text block of a tool result, in bytes: about 20 000 tokens.
pub(super) const RESULT_BYTES_MAX: usize = 80_000;

/// The first `chars` characters, with an ellipsis when some are left off.
pub(super) fn head(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some(_) => {
            let end = text.char_indices().nth(chars.saturating_sub(1)).map_or(0, |(at, _)| at);
            format!("{}…", text.get(..end).unwrap_or_default())
        }
    }
}

/// The last `chars` characters, with an ellipsis when some are left off.
pub(super) fn tail(text: &str, chars: usize) -> String {
    let count = text.chars().count();
    if count <= chars {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(count - chars.saturating_sub(1))).collect()
}

/// One line without control characters, and without the invisible ones that make text look like other text.
pub(super) fn line(text: &str) -> String {
    let spaced = text.chars().filter(|c| !is_deceptive(*c)).map(|c| if c.is_control() { ' ' } else { c });
    let mut out = String::with_capacity(text.len());
    for c in spaced {
        if c != ' ' || !out.ends_with(' ') {
            out.push(c);
        }
    }
    out.trim().to_owned()
}

/// Characters that reorder or hide their neighbours: directions, zero widths, tags. Joiners stay: scripts need them.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The part of a long text that begins after `offset` characters, and where the next part begins, if there is one.
pub(super) fn page(text: &str, offset: usize) -> (&str, Option<usize>) {
    let start = text.char_indices().nth(offset).map_or(text.len(), |(at, _)| at);
    let rest = text.get(start..).unwrap_or_default();
    if rest.len() <= RESULT_BYTES_MAX {
        return (rest, None);
    }
    let end = (0..=RESULT_BYTES_MAX).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(0);
    let part = rest.get(..end).unwrap_or_default();
    (part, Some(offset + part.chars().count()))
}

/// At most [`RESULT_BYTES_MAX`] bytes, with a note that says how much is left off.
pub(super) fn capped(text: &str) -> String {
    if text.len() <= RESULT_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=RESULT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (kept, left) = text.split_at(end);
    format!("{kept}\n[truncated: {} more characters]", left.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_keep_characters_whole() {
        assert_eq!(head("äöü", 3), "äöü");
        assert_eq!(head("äöüß", 3), "äö…");
        assert_eq!(tail("äöü", 3), "äöü");
        assert_eq!(tail("äöüß", 3), "…üß");
        assert_eq!(line(" a\r\n\tb\u{7}c  d "), "a b c d");
        assert_eq!(line("pay\u{202e}\u{2066} 1\u{200b}0\u{feff} \u{e0041}"), "pay 10");
    }

    #[test]
    fn large_text_is_cut_with_a_note() {
        assert_eq!(capped("short"), "short");
        let text = format!("{}ä{}", "x".repeat(RESULT_BYTES_MAX - 1), "y".repeat(9));
        let cut = capped(&text);
        assert_eq!(cut, format!("{}\n[truncated: 10 more characters]", "x".repeat(RESULT_BYTES_MAX - 1)));
    }

    #[test]
    fn pages_put_together_are_the_text() {
        let text = format!("{}ä{}", "x".repeat(RESULT_BYTES_MAX - 1), "ü".repeat(RESULT_BYTES_MAX));
        let (mut whole, mut offset, mut pages) = (String::new(), Some(0), 0);
        while let Some(at) = offset {
            let (part, next) = page(&text, at);
            assert!(part.len() <= RESULT_BYTES_MAX && !part.is_empty());
            whole.push_str(part);
            (offset, pages) = (next, pages + 1);
        }
        assert_eq!((whole == text, pages), (true, 4));
        assert_eq!(page("short", 9), ("", None));
    }
}
