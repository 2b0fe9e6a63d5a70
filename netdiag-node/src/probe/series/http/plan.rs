//! What is to be sent, checked before anything is: a probe must not change a server or smuggle anything past one.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use netdiag_common::observation::series::http::HttpProbe;
use reqwest::Url;

/// Redirects that are followed at most.
const MAX_REDIRECTS: u8 = 10;
/// Bytes of the body that are read at most.
const MAX_BODY_BYTES: u32 = 1024 * 1024;
/// Longest URL, as most servers take it.
const MAX_URL_BYTES: usize = 8 * 1024;
/// Fields of the asker's, and their bytes.
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Fields that say how a message is framed or what the connection becomes: the client's own.
const FRAMING: [HeaderName; 7] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
];

/// A probe that can be sent.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) probe: &'a HttpProbe,
    pub(super) url: Url,
    pub(super) method: Method,
    /// The asker's, without `Host`.
    pub(super) headers: HeaderMap,
    pub(super) host: Option<HeaderValue>,
    pub(super) redirects: u8,
    pub(super) body_bytes: u64,
}

impl<'a> Plan<'a> {
    /// An error says in words what cannot be sent.
    pub(super) fn new(probe: &'a HttpProbe) -> Result<Self, String> {
        let url = url(&probe.url)?;
        let method = match probe.method.as_str() {
            _ if probe.grpc_health.is_some() => Method::POST,
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            "OPTIONS" => Method::OPTIONS,
            other => return Err(format!("{other:?} is not sent: a probe asks by GET, HEAD or OPTIONS")),
        };
        let bytes: usize = probe.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if probe.headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            let count = probe.headers.len();
            return Err(format!(
                "{count} header fields of {bytes} bytes are too many: at most {MAX_HEADERS} of {MAX_HEADER_BYTES} bytes"
            ));
        }
        let (mut headers, mut host) = (HeaderMap::new(), None);
        for (name, value) in &probe.headers {
            let parsed =
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no header field's name"))?;
            let value =
                HeaderValue::from_str(value).map_err(|_| format!("the value of {name} is no header field's"))?;
            if FRAMING.contains(&parsed) {
                return Err(format!("{name} is not sent: it says how the connection is used"));
            }
            if parsed == header::HOST {
                host = Some(value);
            } else {
                headers.append(parsed, value);
            }
        }
        let redirects = if probe.grpc_health.is_some() { 0 } else { probe.redirects.min(MAX_REDIRECTS) };
        let body_bytes = u64::from(probe.body_bytes.min(MAX_BODY_BYTES));
        Ok(Self { probe, url, method, headers, host, redirects, body_bytes })
    }
}

fn url(text: &str) -> Result<Url, String> {
    if text.len() > MAX_URL_BYTES {
        return Err(format!("an URL of {} bytes is too long: at most {MAX_URL_BYTES}", text.len()));
    }
    let mut url = Url::parse(text).map_err(|error| format!("{text:?} is no URL: {error}"))?;
    usable(&url)?;
    url.set_fragment(None);
    Ok(url)
}

fn usable(url: &Url) -> Result<(), String> {
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("{url} cannot be asked: only http:// and https:// with a host can"));
    }
    if url.port() == Some(0) {
        return Err("port 0 cannot be probed".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an URL with a user is not sent; put Authorization into the headers".to_owned());
    }
    Ok(())
}

/// Where a redirect leads.
pub(super) fn redirected(from: &Url, location: &HeaderValue) -> Result<Url, String> {
    let text = location.to_str().map_err(|_| "Location is no text".to_owned())?;
    if text.len() > MAX_URL_BYTES {
        return Err(format!("Location has {} bytes", text.len()));
    }
    let mut url = from.join(text).map_err(|error| format!("Location {text:?} is no URL: {error}"))?;
    usable(&url)?;
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::series::http::HttpVersion;
    use netdiag_common::observation::series::tls::TlsWords;

    use super::*;

    fn probe(url: &str, method: &str, headers: &[(&str, &str)]) -> HttpProbe {
        HttpProbe {
            url: url.to_owned(),
            to: None,
            source_port: None,
            version: HttpVersion::Any,
            method: method.to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            tls: TlsWords::default(),
            any_certificate: false,
            redirects: 200,
            body_bytes: u32::MAX,
            expect: Vec::new(),
            grpc_health: None,
        }
    }

    #[test]
    fn what_changes_a_server_or_its_connection_is_not_sent() {
        for (url, method, headers, words) in [
            ("http://a/", "POST", vec![], "GET, HEAD or OPTIONS"),
            ("http://a/", "get", vec![], "GET, HEAD or OPTIONS"),
            ("http://a/", "GET", vec![("Content-Length", "5")], "how the connection is used"),
            ("http://a/", "GET", vec![("X", "a\r\nB: c")], "the value of X"),
            ("ftp://a/", "GET", vec![], "only http:// and https://"),
            ("http://u:p@a/", "GET", vec![], "with a user"),
            ("http://a:0/", "GET", vec![], "port 0"),
        ] {
            let probe = probe(url, method, &headers);
            let error = Plan::new(&probe).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn limits_are_the_agents() {
        let probe = probe("http://a/x#y", "GET", &[("Host", "b"), ("X-A", "1")]);
        let plan = Plan::new(&probe).unwrap();
        assert_eq!((plan.redirects, plan.body_bytes), (10, 1024 * 1024));
        assert_eq!(plan.url.as_str(), "http://a/x");
        assert_eq!((plan.host.unwrap(), plan.headers.len()), (HeaderValue::from_static("b"), 1));
    }

    #[test]
    fn redirects_lead_to_http_only() {
        let from = Url::parse("https://a/b/c").unwrap();
        let to = |location: &'static str| redirected(&from, &HeaderValue::from_static(location));
        assert_eq!(to("../d?e").unwrap().as_str(), "https://a/d?e");
        assert_eq!(to("//f:81/").unwrap().as_str(), "https://f:81/");
        assert!(to("file:///etc/passwd").is_err());
        assert!(to("gopher://a/").is_err());
    }
}
