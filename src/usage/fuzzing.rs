//! Owns what must hold for any reply of a run, for the fuzz targets. Compiled with the feature `fuzzing` only.
//! Does not generate inputs. Invariant: a broken promise is a panic.

use super::{Meter, UsageRecord};

/// Meters any bytes as an event stream, in pieces of several sizes, and as a JSON reply.
///
/// # Panics
/// When the pieces matter.
pub fn meter(data: &[u8]) {
    let whole = streamed(data, data.len().max(1));
    for size in [1, 3, 64] {
        assert_eq!(streamed(data, size), whole, "pieces of {size}");
    }
    let mut meter = Meter::new();
    meter.json(data);
    let counted = meter.tokens_so_far();
    assert_eq!(meter.finish().tokens(), counted);
}

fn streamed(data: &[u8], size: usize) -> UsageRecord {
    let mut meter = Meter::new();
    for piece in data.chunks(size) {
        meter.sse(piece);
    }
    meter.finish()
}
