//! Owns compressing JSON answers for callers who accept gzip (RFC 9110 §8.4.1, §12.5.3).
//! Does not compress streams of events, small answers, or what is compressed already.
//! Invariant: an answer that would be compressed for another caller says so in `Vary`.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;

use crate::gateway::{Answer, AnswerBody, BodyBroken, StreamBody};

/// Fast: most of the gain at a fraction of the time.
const LEVEL: Compression = Compression::new(2);

/// Compresses an answer where that is worth it and wanted.
pub(super) fn apply(answer: Answer, bytes_min: Option<usize>, is_accepted: bool) -> Answer {
    let Some(bytes_min) = bytes_min.filter(|_| is_json(&answer)) else { return answer };
    // Without a length it is not known to be small.
    if answer.body.size_hint().exact().is_some_and(|length| length < bytes_min as u64) {
        return answer;
    }
    let Answer { status, mut headers, body, refused } = answer;
    headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if !is_accepted {
        return Answer { status, headers, body, refused };
    }
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.remove(header::CONTENT_LENGTH);
    let body = Gzipped { inner: body.into_stream(), encoder: Some(GzEncoder::new(Vec::new(), LEVEL)) };
    Answer { status, headers, body: AnswerBody::stream(body.boxed_unsync()), refused }
}

fn is_json(answer: &Answer) -> bool {
    let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let essence = kind.split(';').next().unwrap_or("").trim();
    let json =
        essence.eq_ignore_ascii_case("application/json") || essence.eq_ignore_ascii_case("application/problem+json");
    let whole =
        !matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT);
    json && whole && !answer.headers.contains_key(header::CONTENT_ENCODING)
}

/// Says whether gzip is among what the caller takes, with a weight above nothing.
pub(super) fn is_accepted(asked: &HeaderMap) -> bool {
    let values = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut any = false;
    for coding in values.flat_map(|value| value.split(',')) {
        let mut words = coding.split(';').map(str::trim);
        let name = words.next().unwrap_or("");
        let refused = words.any(|word| {
            let weight = word.strip_prefix("q=").or_else(|| word.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0))
        });
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return !refused;
        }
        any |= name == "*" && !refused;
    }
    any
}

/// A body on its way through the compressor; nothing is kept back but what gzip itself keeps.
struct Gzipped {
    inner: StreamBody,
    /// `None` once the end was written.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Body for Gzipped {
    type Data = Bytes;
    type Error = BodyBroken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyBroken>>> {
        loop {
            let Some(mut encoder) = self.encoder.take() else { return Poll::Ready(None) };
            let polled = Pin::new(&mut self.inner).poll_frame(cx);
            let frame = match polled {
                Poll::Pending => {
                    self.encoder = Some(encoder);
                    return Poll::Pending;
                }
                ready => ready!(ready),
            };
            // Writing to memory cannot fail.
            let broken = |error: std::io::Error| BodyBroken::BrokeOff(error.to_string());
            match frame {
                None => return Poll::Ready(Some(encoder.finish().map(|end| Frame::data(end.into())).map_err(broken))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else {
                        self.encoder = Some(encoder);
                        continue;
                    };
                    encoder.write_all(&data).map_err(broken)?;
                    let out = std::mem::take(encoder.get_mut());
                    self.encoder = Some(encoder);
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT_ENCODING, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn gzip_is_taken_where_it_is_accepted() {
        for (values, accepted) in [
            (&["gzip"][..], true),
            (&["br, gzip;q=0.5"], true),
            (&["br", "GZIP"], true),
            (&["*"], true),
            (&["*;q=0"], false),
            (&["gzip;q=0, *"], false),
            (&["gzip; q=0.000"], false),
            (&["identity"], false),
            (&["gzipped"], false),
            (&[], false),
        ] {
            assert_eq!(is_accepted(&asked(values)), accepted, "{values:?}");
        }
    }

    #[tokio::test]
    async fn a_body_comes_out_whole_however_it_came_in() {
        use std::io::Read as _;
        let text: Vec<u8> = (0..200_000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        for piece in [1, 7, 4096, 1 << 20] {
            let frames: Vec<_> = text.chunks(piece).map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
            let inner = http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
            let body = Gzipped { inner, encoder: Some(GzEncoder::new(Vec::new(), LEVEL)) };
            let packed = body.collect().await.unwrap().to_bytes();
            let mut whole = Vec::new();
            flate2::read::GzDecoder::new(&*packed).read_to_end(&mut whole).unwrap();
            assert!(whole == text && packed.len() < text.len() / 2, "{piece}: {} bytes", packed.len());
        }
    }
}
