//! Owns which stored item each item of a caller's list is about.
//! Does not judge what the caller says about it (`answers`).
//! Invariant: an item that could mean two stored ones means none.

use serde_json::Value;

use super::answers::Wrong;
use super::waiting::string;

/// The ids of an item, the stronger one first.
pub(super) type Ids = for<'v> fn(&'v Value) -> [Option<&'v str>; 2];

/// A call has one id.
pub(super) fn tool_ids(tool: &Value) -> [Option<&str>; 2] {
    [string(tool, "tool_call_id"), None]
}

/// Calls of two members may have the same id; requirements have ids of their own.
pub(super) fn requirement_ids(requirement: &Value) -> [Option<&str>; 2] {
    let call = requirement.get("tool_execution");
    [string(requirement, "id"), call.and_then(|call| string(call, "tool_call_id"))]
}

/// A step has one id.
pub(super) fn step_ids(step: &Value) -> [Option<&str>; 2] {
    [string(step, "step_id"), None]
}

/// Finds the caller's item for each stored one.
pub(super) fn pair(
    stored: &[Value],
    given: &[Value],
    ids: Ids,
    open: fn(&Value) -> bool,
) -> Result<Vec<Option<usize>>, Wrong> {
    let mut places = vec![None; stored.len()];
    for (at, item) in given.iter().enumerate() {
        let (place, id) = place_of(stored, given, at, item, ids, open)?;
        match places.get_mut(place) {
            Some(free @ None) => *free = Some(at),
            Some(Some(_)) | None => return Err(Wrong::Ambiguous(id.to_owned())),
        }
    }
    Ok(places)
}

/// The stored item that one of the caller's means. Ids may repeat, because providers without ids number their calls
/// anew in each turn: then a list that names all of them goes by order, and one that names one means the open one.
fn place_of<'v>(
    stored: &[Value],
    given: &[Value],
    at: usize,
    item: &'v Value,
    ids: Ids,
    open: fn(&Value) -> bool,
) -> Result<(usize, &'v str), Wrong> {
    if !item.is_object() {
        return Err(Wrong::Malformed("each item must be an object"));
    }
    let by = |which: usize, id: &str| -> Vec<usize> {
        let named = stored.iter().enumerate().filter(|(_, s)| ids(s).get(which).copied().flatten() == Some(id));
        named.map(|(place, _)| place).collect()
    };
    let [strong, weak] = ids(item);
    let strongly = strong.map(|id| (0, id, by(0, id))).filter(|(_, _, places)| !places.is_empty());
    let weakly = weak.map(|id| (1, id, by(1, id)));
    let (which, id, places) = match (strongly, weakly) {
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => match strong {
            Some(id) => return Err(Wrong::Unknown(id.to_owned())),
            None => return Err(Wrong::Malformed("each item needs its id")),
        },
    };
    let agrees = |place: &usize| {
        let stored_weak = stored.get(*place).and_then(|s| ids(s).get(1).copied().flatten());
        weak.is_none() || stored_weak.is_none() || weak == stored_weak
    };
    let twins: Vec<usize> = (0..given.len())
        .filter(|i| given.get(*i).is_some_and(|g| ids(g).get(which).copied().flatten() == Some(id)))
        .collect();
    let place = match places.as_slice() {
        [] => return Err(Wrong::Unknown(id.to_owned())),
        [only] => Some(*only),
        several if several.len() == twins.len() => {
            twins.iter().position(|twin| *twin == at).and_then(|rank| several.get(rank).copied())
        }
        several => {
            let mut waiting = several.iter().copied().filter(|place| stored.get(*place).is_some_and(open));
            waiting.next().filter(|_| twins.len() == 1 && waiting.next().is_none())
        }
    };
    match place {
        Some(place) if agrees(&place) => Ok((place, id)),
        Some(_) => Err(Wrong::Unknown(weak.unwrap_or(id).to_owned())),
        None => Err(Wrong::Ambiguous(id.to_owned())),
    }
}
