//! Owns fetching one small document by URL: key sets, health answers.
//! Does not follow redirects and does not look at the status: callers do.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::BodyExt as _;

use super::origin::Origin;
use super::{BodyError, Client, Freshness, SendError, SendOptions, empty};

/// Limits and headers of a fetch.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// From the start to the last byte.
    pub deadline: Duration,
    /// Most body bytes that are taken.
    pub bytes_max: usize,
    /// Request headers.
    pub headers: HeaderMap,
}

/// A fetched document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Why a document was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The text is no URL that can be fetched.
    #[error("the url cannot be fetched: {0}")]
    BadUrl(&'static str),
    /// No response.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The document was not there in time.
    #[error("the document did not come within {}ms", .0.as_millis())]
    Deadline(Duration),
    /// The document is larger than allowed.
    #[error("the document is larger than {0} bytes")]
    TooLarge(usize),
    /// The body broke off.
    #[error("the document broke off")]
    Body(#[source] BodyError),
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(5), bytes_max: 256 * 1024, headers: HeaderMap::new() }
    }
}

impl Client {
    /// Fetches a document with GET: one deadline, one byte limit, no redirects.
    ///
    /// # Errors
    /// [`FetchError`]; a status other than 200 is no error.
    pub async fn fetch(&self, url: &str, options: &FetchOptions) -> Result<Fetched, FetchError> {
        let url = url::Url::parse(url).map_err(|_| FetchError::BadUrl("it cannot be parsed"))?;
        let origin = Origin::of_url(&url).map_err(FetchError::BadUrl)?;
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let target = Uri::try_from(target).map_err(|_| FetchError::BadUrl("its path cannot be sent"))?;
        self.get(&origin, target, options).await
    }

    /// As [`Client::fetch`], with another method and without a body: for the gateway's own admin listener.
    ///
    /// # Errors
    /// [`FetchError`]; a status other than 200 is no error.
    pub async fn ask(&self, method: Method, url: &str, options: &FetchOptions) -> Result<Fetched, FetchError> {
        let url = url::Url::parse(url).map_err(|_| FetchError::BadUrl("it cannot be parsed"))?;
        let origin = Origin::of_url(&url).map_err(FetchError::BadUrl)?;
        let target = format!("{}?{}", url.path(), url.query().unwrap_or(""));
        let mut request = Request::new(empty());
        *request.uri_mut() = Uri::try_from(target).map_err(|_| FetchError::BadUrl("its path cannot be sent"))?;
        *request.method_mut() = method;
        *request.headers_mut() = options.headers.clone();
        let all = Box::pin(self.collect(&origin, request, options));
        tokio::time::timeout(options.deadline, all).await.map_err(|_| FetchError::Deadline(options.deadline))?
    }

    /// As [`Client::fetch`], for a path on a known origin.
    ///
    /// # Errors
    /// [`FetchError`]; a status other than 200 is no error.
    pub async fn get(&self, origin: &Origin, target: Uri, options: &FetchOptions) -> Result<Fetched, FetchError> {
        let mut request = Request::new(empty());
        *request.uri_mut() = target;
        *request.headers_mut() = options.headers.clone();
        let all = Box::pin(self.collect(origin, request, options));
        tokio::time::timeout(options.deadline, all).await.map_err(|_| FetchError::Deadline(options.deadline))?
    }

    async fn collect(
        &self,
        origin: &Origin,
        request: Request<super::RequestBody>,
        options: &FetchOptions,
    ) -> Result<Fetched, FetchError> {
        let send = SendOptions {
            connect_timeout: self.0.settings.connect_timeout.min(options.deadline),
            // The deadline over all of it comes first.
            header_timeout: options.deadline.saturating_mul(2),
            freshness: Freshness::Fresh,
        };
        let response = self.send(origin, request, &send).await?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(FetchError::Body)?.into_data() else { continue };
            if bytes.len() + data.len() > options.bytes_max {
                return Err(FetchError::TooLarge(options.bytes_max));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Fetched { status, body: bytes.freeze() })
    }
}
