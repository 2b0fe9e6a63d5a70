//! One reading of everything: all resources listed at once, page by page, decoded object by object.

use std::time::Duration;

use futures::future::join_all;
use http::Request;
use netdiag_common::{Gap, GapReason};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::Access;
use super::error::RequestError;
use super::resource::{RESOURCES, Resource, api_version};
use crate::ask::SourceError;
use crate::evidence::parse::{self, ObjectError};
use crate::evidence::{Cluster, KindName};

/// Objects per page: what kubectl asks for.
const PAGE: usize = 500;
/// Pages of one resource, so that a cluster that grows while we read cannot hold us: half a million objects.
const MAX_PAGES: usize = 1_000;
/// Events are looked at when they are recent, and a storm of them must not hold up the rest.
const MAX_EVENT_PAGES: usize = 4;
/// One page of one resource. The largest, 500 pods, is about 5 MiB.
pub(super) const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

/// One resource's objects, and where to watch from.
pub(super) struct Listed {
    pub objects: Cluster,
    pub end: End,
}

/// What a list was read by, and which state of it was read.
pub(super) struct End {
    /// Of the version that is served.
    pub path: &'static str,
    pub resource_version: String,
}

/// Everything the API lets us read. A resource that it does not is a gap of its kind; an error means that nothing was read.
pub async fn snapshot(access: &Access) -> Result<Cluster, SourceError> {
    let all = join_all(RESOURCES.iter().map(|resource| list(access, resource))).await;
    let mut cluster = Cluster::default();
    let mut errors = Vec::new();
    for (resource, result) in RESOURCES.iter().zip(all) {
        match result {
            Ok(listed) => resource.replace(&mut cluster, listed.objects),
            Err(error) => {
                if !resource.is_absent(&error) {
                    resource.goes_to.set_gap(&mut cluster, Some(resource.gap(&error)));
                }
                errors.push(error);
            }
        }
    }
    if errors.len() == RESOURCES.len() {
        return Err(errors.remove(0).of_source(access));
    }
    cluster.name = name(access, &cluster);
    Ok(cluster)
}

/// The context, or inside a cluster the UID that its oldest namespace keeps for life.
pub(super) fn name(access: &Access, cluster: &Cluster) -> String {
    if !access.context.is_empty() {
        return access.context.clone();
    }
    cluster
        .namespaces
        .get("", "kube-system")
        .map_or_else(|| access.server.clone(), |system| system.metadata.uid.clone())
}

/// All objects of one resource.
pub(super) async fn list(access: &Access, resource: &Resource) -> Result<Listed, RequestError> {
    let mut objects = Cluster::default();
    let end = pages(access, resource, |page| {
        for item in page {
            add(&mut objects, resource, item.get());
        }
    })
    .await?;
    Ok(Listed { objects, end })
}

/// Reads page by page.
async fn pages(
    access: &Access,
    resource: &Resource,
    mut take: impl FnMut(&[Box<RawValue>]),
) -> Result<End, RequestError> {
    let limit = if resource.goes_to == KindName::Events { MAX_EVENT_PAGES } else { MAX_PAGES };
    let (first, path) = first_page(access, resource).await?;
    let mut end = first.metadata;
    take(&first.items.unwrap_or_default());
    for _ in 1..limit {
        if end.r#continue.is_empty() {
            break;
        }
        let page = page(access, resource, path, &end.r#continue).await?;
        end = page.metadata;
        take(&page.items.unwrap_or_default());
    }
    Ok(End { path, resource_version: end.resource_version })
}

/// By the first version that is served, and by which path that was.
async fn first_page(access: &Access, resource: &Resource) -> Result<(Page, &'static str), RequestError> {
    let mut path = resource.path;
    let mut first = page(access, resource, path, "").await;
    for older in resource.older.iter().copied() {
        if !matches!(first, Err(RequestError::NotServed(_))) {
            break;
        }
        path = older;
        first = page(access, resource, path, "").await;
    }
    first.map(|page| (page, path))
}

/// `token`: where the page before it ended; empty for the first one.
async fn page(access: &Access, resource: &Resource, path: &str, token: &str) -> Result<Page, RequestError> {
    let mut uri = format!("{path}?limit={PAGE}");
    if !resource.query.is_empty() {
        uri.push_str(&format!("&{}", resource.query));
    }
    if !token.is_empty() {
        uri.push_str(&format!("&continue={token}"));
    }
    get(access, &uri).await
}

/// One resource as the API wrote it, for a bundle.
pub struct RawList {
    /// As in YAML: `Pod`.
    pub kind: &'static str,
    /// As kubectl's short word for it and a bundle's file name: `pods`.
    pub name: &'static str,
    pub api_version: String,
    /// The objects, or why they could not be listed.
    pub items: Result<Vec<Value>, Gap>,
}

/// All resources that are judged, whole.
pub async fn raw_lists(access: &Access) -> Result<Vec<RawList>, SourceError> {
    let all = join_all(RESOURCES.iter().map(|resource| raw(access, resource))).await;
    if let Some(Err(error)) = all.first().filter(|_| all.iter().all(Result::is_err)) {
        return Err(error.of_source(access));
    }
    let list = |(resource, read): (&Resource, Result<(Vec<Value>, &'static str), RequestError>)| {
        let path = read.as_ref().map_or(resource.path, |(_, path)| *path);
        RawList {
            kind: resource.kind,
            name: resource.plural.split('.').next().unwrap_or(resource.plural),
            api_version: api_version(path),
            items: match read {
                Err(error) if resource.is_absent(&error) => Ok(Vec::new()),
                Err(error) => Err(resource.gap(&error)),
                Ok((items, _)) => Ok(items),
            },
        }
    };
    Ok(RESOURCES.iter().zip(all).map(list).collect())
}

/// With the path that they were read by.
async fn raw(access: &Access, resource: &Resource) -> Result<(Vec<Value>, &'static str), RequestError> {
    let mut items = Vec::new();
    let end = pages(access, resource, |page| {
        items.extend(page.iter().filter_map(|item| serde_json::from_str(item.get()).ok()));
    })
    .await?;
    Ok((items, end.path))
}

/// Adds one object; one that cannot be understood is named, and the others stay.
pub(super) fn add(cluster: &mut Cluster, resource: &Resource, json: &str) {
    if let Err(error) = parse::add_json(cluster, resource.kind, json) {
        cluster.unread.push(unread(&error));
    }
}

fn unread(error: &ObjectError) -> Gap {
    Gap {
        what: error.object.clone(),
        node: None,
        reason: GapReason::Malformed,
        why: format!("the API server's JSON is not what netdiag understands: {}", error.why),
        remedy: "look at the object with `kubectl get -o yaml`; everything else was judged".to_owned(),
    }
}

/// One GET, bounded in time.
pub(super) async fn get<T: serde::de::DeserializeOwned>(access: &Access, uri: &str) -> Result<T, RequestError> {
    let request = Request::get(uri).body(Vec::new()).map_err(|error| RequestError::Failed(error.to_string()))?;
    match tokio::time::timeout(PAGE_TIMEOUT, access.client.request_text(request)).await {
        Ok(Ok(text)) => serde_json::from_str(&text).map_err(|error| {
            RequestError::Failed(format!("the answer to GET {uri} is not what was asked for: {error}"))
        }),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(RequestError::TimedOut(PAGE_TIMEOUT)),
    }
}
