//! Owns how findings name words: the nearest one to a slip, and lists of them.
//! Does not know where they stand (`reader`).

/// "did you mean …?" for the candidate that is close enough to be a slip.
pub(super) fn nearest<'c>(written: &str, candidates: impl Iterator<Item = &'c str>) -> Option<String> {
    // Case is the commonest slip and no distance at all.
    let distance = |candidate: &str| strsim::damerau_levenshtein(&written.to_lowercase(), &candidate.to_lowercase());
    let scored = candidates.map(|candidate| (distance(candidate), candidate));
    let (distance, candidate) = scored.min()?;
    let slip = (written.chars().count().max(candidate.chars().count()) / 3).max(1);
    (distance <= slip).then(|| format!("did you mean `{candidate}`?"))
}

/// Words in backticks, separated by commas.
pub(super) fn quoted<'c>(words: impl Iterator<Item = &'c str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_slip_is_worth_a_suggestion() {
        let keys = ["listen", "public_url", "threads"];
        for (written, expected) in [
            ("lisetn", Some("did you mean `listen`?")),
            ("Listen", Some("did you mean `listen`?")),
            ("public_uri", Some("did you mean `public_url`?")),
            ("completely_different", None),
        ] {
            assert_eq!(nearest(written, keys.into_iter()).as_deref(), expected, "{written}");
        }
    }
}
