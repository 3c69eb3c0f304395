//! Owns lists of components in pages: what a cursor is, and where a page begins.
//! Does not know what is listed.
//! Invariants: pages follow one order (cluster, kind, id); a cursor stays good when the list changes between pages.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rmcp::ErrorData;
use rmcp::model::PaginatedRequestParams;

use super::viewer::Shown;
use crate::agentos::operation::Kind;

/// Components of one page.
const PAGE_ITEMS: usize = 200;

/// One page of components, and the cursor of the next one.
///
/// # Errors
/// Invalid parameters for a cursor that was never given out.
pub(super) fn page(
    shown: Vec<Shown>,
    request: Option<&PaginatedRequestParams>,
) -> Result<(Vec<Shown>, Option<String>), ErrorData> {
    let cursor = request.and_then(|page| page.cursor.as_deref()).filter(|cursor| !cursor.is_empty());
    let after = cursor.map(|cursor| position(cursor).ok_or_else(unknown)).transpose()?;
    let key = |shown: &Shown| (shown.found.cluster.to_string(), shown.found.kind, shown.found.id.clone());
    let mut rest = shown.into_iter().filter(|shown| after.as_ref().is_none_or(|after| key(shown) > *after));
    let page: Vec<Shown> = rest.by_ref().take(PAGE_ITEMS).collect();
    let last = page.last().filter(|_| rest.next().is_some());
    let next = last.map(|last| {
        let (cluster, kind, id) = key(last);
        URL_SAFE_NO_PAD.encode(serde_json::json!([cluster, kind.as_str(), id]).to_string())
    });
    Ok((page, next))
}

/// For lists that always fit on one page.
///
/// # Errors
/// Invalid parameters for every cursor: none was given out.
pub(super) fn only(request: Option<&PaginatedRequestParams>) -> Result<(), ErrorData> {
    let cursor = request.and_then(|page| page.cursor.as_deref()).filter(|cursor| !cursor.is_empty());
    cursor.map_or(Ok(()), |_| Err(unknown()))
}

fn position(cursor: &str) -> Option<(String, Kind, String)> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (cluster, kind, id): (String, String, String) = serde_json::from_slice(&bytes).ok()?;
    Some((cluster, Kind::parse(&kind)?, id))
}

fn unknown() -> ErrorData {
    ErrorData::invalid_params("unknown cursor", None)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mcp::discovery::Found;

    fn shown(count: usize) -> Vec<Shown> {
        let one = |n: usize| {
            let id = format!("a{n:04}");
            let found = Found {
                cluster: "main".into(),
                kind: Kind::Agent,
                id: id.clone(),
                name: String::new(),
                description: String::new(),
                withheld: None,
            };
            Shown { found: Arc::new(found), name: id.clone(), slug: id }
        };
        (0..count).map(one).collect()
    }

    fn at(cursor: &str) -> PaginatedRequestParams {
        let mut params = PaginatedRequestParams::default();
        params.cursor = Some(cursor.to_owned());
        params
    }

    #[test]
    fn pages_cover_the_list_once_also_when_it_changes() {
        let (first, next) = page(shown(450), Some(&at(""))).unwrap();
        let next = next.unwrap();
        assert_eq!((first.len(), first[199].name.as_str()), (200, "a0199"));
        let mut changed = shown(450);
        changed.remove(199);
        let (second, next) = page(changed, Some(&at(&next))).unwrap();
        assert_eq!((second[0].name.as_str(), second.len()), ("a0200", 200));
        let (third, end) = page(shown(450), Some(&at(&next.unwrap()))).unwrap();
        assert_eq!((third.len(), end), (50, None));
    }

    #[test]
    fn a_full_page_at_the_end_has_no_next_one() {
        assert_eq!(page(shown(200), None).unwrap().1, None);
        assert!(page(shown(201), None).unwrap().1.is_some());
    }

    #[test]
    fn cursors_that_nobody_gave_out_are_refused() {
        for cursor in ["x", "WyJhIl0", "!!"] {
            assert!(page(shown(1), Some(&at(cursor))).is_err(), "{cursor}");
            assert!(only(Some(&at(cursor))).is_err(), "{cursor}");
        }
        assert!(only(Some(&at(""))).is_ok() && only(None).is_ok());
    }
}
