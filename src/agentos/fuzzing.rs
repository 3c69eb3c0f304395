//! Owns what must hold for any path and query, for the fuzz targets. Compiled with the feature `fuzzing` only.
//! Does not generate inputs. Invariant: a broken promise is a panic.

use std::sync::LazyLock;

use super::{CanonicalPath, Catalog, Method, Query};

static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::shipped);

/// Canonicalises, matches with every method, and reads the query of any request target.
///
/// # Panics
/// When a canonical path is not its own canonical form, holds what it must not, or a query does not read as written.
pub fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (path, query) = text.split_once('?').unwrap_or((&text, ""));
    if let Ok(canonical) = CanonicalPath::parse(path) {
        assert_eq!(CanonicalPath::parse(canonical.as_str()).as_ref(), Ok(&canonical), "not its own canonical form");
        let sound = |segment: &String| {
            !segment.is_empty() && segment != "." && segment != ".." && !segment.contains(['/', '\\', '\0', '\r', '\n'])
        };
        assert!(canonical.segments().iter().all(sound), "{canonical:?}");
        assert!(canonical.as_str().bytes().all(|byte| byte.is_ascii_graphic()), "{canonical:?}");
        for method in Method::ALL {
            let Ok(method) = method.as_str().parse() else { continue };
            if let Ok(matched) = CATALOG.find(&method, &canonical) {
                assert!(matched.params.iter().all(|(_, value)| !value.is_empty()), "{matched:?}");
            }
        }
    }
    if let Ok(query) = Query::parse(query) {
        assert_eq!(Query::parse(&query.to_string()), Ok(query), "a query does not read as written");
    }
}
