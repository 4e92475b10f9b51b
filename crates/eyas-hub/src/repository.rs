//! What a repository is and has: its commit, its files, and its refusals.

use serde::Deserialize;
use ureq::Body;
use ureq::http::{Response, StatusCode};

use crate::digest::Checksum;
use crate::events::Observer;
use crate::http::{Call, Client, component, header, json, path};
use crate::name::{HubName, RepoKind, is_inside};
use crate::{Error, Result};

/// A repository on a hub.
#[derive(Clone, Copy)]
pub(crate) struct Repository<'a> {
    pub client: &'a Client,
    pub kind: RepoKind,
    pub name: &'a HubName,
}

/// What the hub says of a repository.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Info {
    /// The commit that the revision stands for; `None` while the repository is empty.
    pub sha: Option<String>,
    #[serde(default)]
    pub private: bool,
}

/// A file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub path: String,
    pub size: u64,
    pub checksum: Checksum,
}

/// An entry of the list of files, as the hub writes it.
#[derive(Deserialize)]
struct Entry {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Repository<'_> {
    /// The address of a route of the API.
    pub(crate) fn api(&self, route: &str) -> String {
        let endpoint = &self.client.settings().endpoint;
        format!("{endpoint}/api/{}/{}{route}", self.kind.plural(), self.name.id())
    }

    /// The page for people.
    pub(crate) fn page(&self) -> String {
        let endpoint = &self.client.settings().endpoint;
        format!("{endpoint}/{}{}", self.kind.prefix(), self.name.id())
    }

    /// The address of a file.
    pub(crate) fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/resolve/{}/{}", self.page(), component(commit), path(file))
    }

    /// Asks what a revision is.
    pub(crate) fn info(&self, revision: &str, observer: &dyn Observer) -> Result<Info> {
        let url = self.api(&format!("/revision/{}", component(revision)));
        let mut response = self.client.send(&Call::get(url, self.name.id()), observer)?;
        self.check(&mut response, revision, None)?;
        json(self.name.id(), &mut response)
    }

    /// Whether the repository is there at all, and whether it is private.
    pub(crate) fn exists(&self, observer: &dyn Observer) -> Result<Option<Info>> {
        let mut response = self.client.send(&Call::get(self.api(""), self.name.id()), observer)?;
        match self.check(&mut response, self.name.revision(), None) {
            Ok(()) => json(self.name.id(), &mut response).map(Some),
            Err(Error::NoRepository { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The commit that a revision stands for.
    pub(crate) fn commit(&self, revision: &str, observer: &dyn Observer) -> Result<String> {
        let info = self.info(revision, observer)?;
        match info.sha {
            Some(sha) if crate::name::is_commit(&sha) => Ok(sha),
            _ => Err(Error::Protocol {
                what: self.name.id().into(),
                reason: format!("it names no commit for revision {revision}"),
            }),
        }
    }

    /// All files of a commit, page after page.
    pub(crate) fn files(&self, commit: &str, observer: &dyn Observer) -> Result<Vec<RemoteFile>> {
        let mut next = Some(self.api(&format!("/tree/{}?recursive=true&expand=false", component(commit))));
        let mut files = Vec::new();
        while let Some(url) = next.take() {
            let mut response = self.client.send(&Call::get(url, self.name.id()), observer)?;
            self.check(&mut response, commit, None)?;
            next = header(&response, "link").and_then(next_page);
            let entries: Vec<Entry> = json(self.name.id(), &mut response)?;
            // A path that would lead out of the cache, or that this system has no name for, is passed over.
            let usable = |entry: &Entry| entry.r#type == "file" && is_inside(&entry.path);
            for entry in entries.into_iter().filter(usable) {
                files.push(self.remote_file(entry)?);
            }
        }
        Ok(files)
    }

    fn remote_file(&self, entry: Entry) -> Result<RemoteFile> {
        let (size, checksum, digits) = match entry.lfs {
            Some(lfs) => (lfs.size, Checksum::Sha256(lfs.oid), 64),
            None => (entry.size, Checksum::GitSha1(entry.oid), 40),
        };
        let hexadecimal =
            checksum.digits().len() == digits && checksum.digits().bytes().all(|b| b.is_ascii_hexdigit());
        // It becomes a name on this machine.
        if !hexadecimal {
            return Err(Error::Protocol {
                what: self.name.id().into(),
                reason: format!(
                    "its list of files has `{}` with checksum `{}`",
                    entry.path,
                    checksum.digits()
                ),
            });
        }
        Ok(RemoteFile { path: entry.path, size, checksum })
    }

    /// Turns an answer that says no into the error that it stands for.
    pub(crate) fn check(
        &self,
        response: &mut Response<Body>,
        revision: &str,
        file: Option<&str>,
    ) -> Result<()> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let name = self.name.id().to_owned();
        let has_token = self.client.settings().token.is_some();
        let expired = header(response, "x-error-message")
            .is_some_and(|message| message.starts_with("Invalid credentials"));
        let code = header(response, "x-error-code").unwrap_or_default().to_owned();
        Err(match (code.as_str(), status) {
            ("GatedRepo", _) => Error::Gated {
                name,
                page: self.page(),
                login: if has_token {
                    "try again; access may have to be granted by its authors"
                } else {
                    "run `hf auth login` or set HF_TOKEN"
                },
            },
            ("RevisionNotFound", _) => Error::NoRevision {
                name,
                revision: revision.into(),
                page: format!("{}/tree/main", self.page()),
            },
            ("EntryNotFound", _) => {
                Error::NoFile { name, revision: revision.into(), file: file.unwrap_or("of that name").into() }
            }
            (_, StatusCode::UNAUTHORIZED) if expired => self.client.refusal(&name, response),
            ("RepoNotFound", _) | (_, StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED) => {
                Error::NoRepository {
                    name,
                    what: match self.kind {
                        RepoKind::Model => "model",
                        RepoKind::Dataset => "data set",
                    },
                    page: self.page(),
                    login: if has_token {
                        "your token gives no access to it"
                    } else {
                        "you are not logged in (run `hf auth login`, or set HF_TOKEN)"
                    },
                }
            }
            _ => self.client.refusal(&name, response),
        })
    }
}

/// The address of the next page in a `Link` header.
fn next_page(links: &str) -> Option<String> {
    links.split(',').find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        rest.contains("rel=\"next\"").then(|| address.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_in_the_link_header() {
        let links =
            "<https://hub.example/a?cursor=1>; rel=\"prev\", <https://hub.example/a?cursor=3>; rel=\"next\"";
        assert_eq!(next_page(links).as_deref(), Some("https://hub.example/a?cursor=3"));
        assert_eq!(next_page("<https://hub.example/a>; rel=\"last\""), None);
    }
}
