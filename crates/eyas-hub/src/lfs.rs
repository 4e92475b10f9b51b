//! Git's large file storage: what is to be sent is asked in one batch, sent whole or in parts, and verified.
//!
//! Follows git-lfs' batch API with the hub's `multipart` transfer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use crate::events::{Event, Observer};
use crate::http::{Call, Payload, header, json};
use crate::repository::Repository;
use crate::{Error, Result};

const CONTENT_TYPE: &str = "application/vnd.git-lfs+json";
/// The endpoint that the hub's own answers name, also through a mirror.
const PUBLISHED_ENDPOINT: &str = "https://huggingface.co";

/// A large file that is to be in storage.
#[derive(Clone, Copy)]
pub(crate) struct LargeFile<'a> {
    pub local: &'a Path,
    pub path: &'a str,
    pub size: u64,
    pub sha256: &'a str,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    code: u16,
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, Value>>,
}

impl Action {
    fn header(&self, name: &str) -> Option<String> {
        match self.header.as_ref()?.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Headers that the storage wants; the others of a multipart upload are its parameters.
    fn headers(&self) -> Vec<(String, String)> {
        let names = self.header.iter().flat_map(BTreeMap::keys);
        let names = names.filter(|name| *name != "chunk_size" && name.parse::<u32>().is_err());
        names.filter_map(|name| Some((name.clone(), self.header(name)?))).collect()
    }
}

/// Brings large files into storage. Those that are there already are not sent. Returns the paths of those that were.
pub(crate) fn upload(
    repository: &Repository<'_>,
    revision: &str,
    files: &[LargeFile<'_>],
    observer: &dyn Observer,
) -> Result<Vec<String>> {
    let what = repository.name.id();
    let objects: Vec<Value> =
        files.iter().map(|file| json!({"oid": file.sha256, "size": file.size})).collect();
    let body = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": objects,
        "hash_algo": "sha256",
        "ref": {"name": revision},
    });
    let url = format!("{}.git/info/lfs/objects/batch", repository.page());
    let bytes = body.to_string().into_bytes();
    let mut call = Call::post(url, what, CONTENT_TYPE, &bytes);
    call.headers.push(("accept".into(), CONTENT_TYPE.into()));
    let mut response = repository.client.send(&call, observer)?;
    repository.check(&mut response, revision, None)?;
    let batch: Batch = json(what, &mut response)?;

    let mut jobs = Vec::new();
    for file in files {
        let Some(object) = batch.objects.iter().find(|object| object.oid == file.sha256) else {
            let reason = format!("it says nothing of {} in storage", file.path);
            return Err(Error::Protocol { what: what.into(), reason });
        };
        if let Some(error) = &object.error {
            return Err(Error::Status {
                what: format!("{what}: {}", file.path),
                status: error.code,
                reason: error.message.clone(),
            });
        }
        if let Some(actions) = &object.actions
            && let Some(action) = &actions.upload
        {
            jobs.push((file, action, actions.verify.as_ref()));
        }
    }
    if !jobs.is_empty() {
        let bytes = jobs.iter().map(|(file, ..)| file.size).sum();
        observer.event(Event::Started { what, files: jobs.len(), bytes });
        let sent = jobs.iter().try_for_each(|(file, action, verify)| {
            let what = format!("{what}: {}", file.path);
            Upload { repository, file, what, observer }.run(action, *verify)?;
            observer.event(Event::Done(file.path));
            Ok(())
        });
        observer.event(Event::Finished);
        sent?;
    }
    Ok(jobs.iter().map(|(file, ..)| file.path.to_owned()).collect())
}

/// One file on its way into storage.
struct Upload<'a> {
    repository: &'a Repository<'a>,
    file: &'a LargeFile<'a>,
    what: String,
    observer: &'a dyn Observer,
}

impl Upload<'_> {
    fn run(&self, action: &Action, verify: Option<&Action>) -> Result<()> {
        match action.header("chunk_size") {
            Some(size) => self.in_parts(action, &size)?,
            None => {
                self.put(&action.href, action.headers(), 0, self.file.size)?;
            }
        }
        if let Some(verify) = verify {
            let body = json!({"oid": self.file.sha256, "size": self.file.size}).to_string();
            let mut call =
                Call::post(self.address(&verify.href), &self.what, "application/json", body.as_bytes());
            call.headers = verify.headers();
            self.finish(&call)?;
        }
        Ok(())
    }

    /// Sends parts of equal size to an address each, then the list of what the storage called them.
    fn in_parts(&self, action: &Action, chunk_size: &str) -> Result<()> {
        let protocol = |reason: String| Error::Protocol { what: self.what.clone(), reason };
        let chunk = chunk_size.parse::<u64>().ok().filter(|size| *size > 0);
        let chunk = chunk.ok_or_else(|| protocol(format!("it asks for parts of `{chunk_size}` bytes")))?;
        let numbers = action.header.iter().flat_map(BTreeMap::keys).filter_map(|name| name.parse().ok());
        let mut addresses: Vec<(u64, String)> = numbers
            .filter_map(|number: u64| {
                let name = action.header.as_ref()?.keys().find(|name| name.parse() == Ok(number))?;
                Some((number, action.header(name)?))
            })
            .collect();
        addresses.sort();
        if addresses.len() as u64 != self.file.size.div_ceil(chunk) {
            return Err(protocol(format!(
                "it gives {} addresses for {} parts",
                addresses.len(),
                self.file.size.div_ceil(chunk)
            )));
        }
        let mut parts = Vec::new();
        for (place, (_, address)) in addresses.iter().enumerate() {
            let start = place as u64 * chunk;
            let etag = self.put(address, Vec::new(), start, chunk.min(self.file.size - start))?;
            let etag =
                etag.ok_or_else(|| protocol(format!("part {} came back without a name", place + 1)))?;
            parts.push(json!({"partNumber": place + 1, "etag": etag}));
        }
        let body = json!({"oid": self.file.sha256, "parts": parts}).to_string();
        let mut call = Call::post(self.address(&action.href), &self.what, CONTENT_TYPE, body.as_bytes());
        // The address is signed.
        call.with_token = false;
        call.headers.push(("accept".into(), CONTENT_TYPE.into()));
        self.finish(&call)
    }

    /// Sends a piece of the file and returns what the storage calls it.
    fn put(
        &self,
        address: &str,
        headers: Vec<(String, String)>,
        start: u64,
        length: u64,
    ) -> Result<Option<String>> {
        let call = Call {
            method: Method::PUT,
            url: self.address(address),
            what: &self.what,
            with_token: false,
            needs_token: false,
            headers,
            payload: Payload::File { path: self.file.local, start, length, observer: self.observer },
            repeatable: true,
        };
        let mut response = self.repository.client.send(&call, self.observer)?;
        if !response.status().is_success() {
            return Err(self.repository.client.refusal(&self.what, &mut response));
        }
        Ok(header(&response, "etag").map(str::to_owned))
    }

    fn finish(&self, call: &Call<'_>) -> Result<()> {
        let mut response = self.repository.client.send(call, self.observer)?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(self.repository.client.refusal(&self.what, &mut response)),
        }
    }

    /// An address of the hub, by the name under which it is reached here.
    fn address(&self, href: &str) -> String {
        match href.strip_prefix(PUBLISHED_ENDPOINT) {
            Some(rest) if rest.starts_with('/') => {
                format!("{}{rest}", self.repository.client.settings().endpoint)
            }
            _ => href.into(),
        }
    }
}
