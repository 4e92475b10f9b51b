//! Sending files to a repository, in one commit.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::{Method, StatusCode};

use crate::digest::{git_sha1, sha256_of};
use crate::events::{Event, Observer};
use crate::http::{Call, Payload, component, json};
use crate::hub::Hub;
use crate::lfs::{self, LargeFile};
use crate::name::{DEFAULT_REVISION, HubName, RepoKind};
use crate::repository::Repository;
use crate::{Error, Result};

/// Bytes from a file's start by which the hub tells text from other things.
const SAMPLE: u64 = 512;

/// A file that is to be in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushFile {
    /// Its path there.
    pub path: String,
    /// What is in it.
    pub contents: Contents,
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Those of a file on this machine.
    File(PathBuf),
}

impl Contents {
    /// How many bytes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn size(&self) -> Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(path) => match std::fs::metadata(path) {
                Ok(metadata) => Ok(metadata.len()),
                Err(source) => Err(Error::Io { path: path.clone(), source }),
            },
        }
    }

    fn read(&self, limit: u64) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.iter().copied().take(limit as usize).collect()),
            Self::File(path) => {
                let io = |source| Error::Io { path: path.clone(), source };
                let mut bytes = Vec::new();
                File::open(path).map_err(io)?.take(limit).read_to_end(&mut bytes).map_err(io)?;
                Ok(bytes)
            }
        }
    }
}

/// A push.
#[derive(Clone, Debug)]
pub struct Push<'a> {
    /// The repository; it is made where it is not there.
    pub name: &'a HubName,
    /// Whether only its owner may see it. One that is there and public is refused then.
    pub private: bool,
    /// The branch; it is made where it is not there. `None` is the default branch.
    pub revision: Option<&'a str>,
    /// The commit's message.
    pub message: &'a str,
    /// The files.
    pub files: &'a [PushFile],
}

/// Whoever has a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name below which repositories stand.
    pub name: String,
    /// False where the token is for reading only.
    pub may_write: bool,
}

/// What a push came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The page to look at.
    pub url: String,
    /// The commit; `None` where nothing had changed.
    pub commit: Option<String>,
    /// Files of the commit.
    pub changed: Vec<String>,
    /// Files that were there already, just so.
    pub unchanged: Vec<String>,
    /// Large files whose contents went over the network.
    pub sent: Vec<String>,
}

#[derive(Deserialize)]
struct Preupload {
    files: Vec<PreuploadFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PreuploadFile {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    /// How the file that is there is known.
    oid: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_url: String,
    commit_oid: String,
}

/// A file whose way is known.
enum Planned<'a> {
    Regular {
        path: &'a str,
        bytes: Vec<u8>,
    },
    Large {
        path: &'a str,
        local: PathBuf,
        size: u64,
        sha256: String,
        _scratch: Option<tempfile::NamedTempFile>,
    },
}

impl Hub {
    /// Whose token is used.
    ///
    /// # Errors
    /// When there is no token, or the hub does not know it.
    pub fn account(&self, observer: &dyn Observer) -> Result<Account> {
        #[derive(Deserialize)]
        struct Who {
            name: String,
            #[serde(default)]
            auth: Value,
        }
        let what = "your account on the hub";
        self.check_writable(what)?;
        let url = format!("{}/api/whoami-v2", self.settings().endpoint);
        let mut call = Call::get(url, what);
        call.needs_token = true;
        let mut response = self.client.send(&call, observer)?;
        if !response.status().is_success() {
            return Err(self.client.refusal(what, &mut response));
        }
        let who: Who = json(what, &mut response)?;
        // Tokens with fine-grained permissions are judged where they are used.
        let may_write = who.auth["accessToken"]["role"] != "read";
        Ok(Account { name: who.name, may_write })
    }

    /// Reads a small file of a repository; `None` where it, its revision or its repository is not there.
    ///
    /// # Errors
    /// When the network or the hub refuses.
    pub fn read(&self, name: &HubName, file: &str, observer: &dyn Observer) -> Result<Option<Vec<u8>>> {
        let repository = Repository { client: &self.client, kind: RepoKind::Model, name };
        let mut call = Call::get(repository.file_url(name.revision(), file), name.id());
        call.needs_token = true;
        let mut response = self.client.send(&call, observer)?;
        match repository.check(&mut response, name.revision(), Some(file)) {
            Ok(()) => {}
            Err(Error::NoFile { .. } | Error::NoRepository { .. } | Error::NoRevision { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let bytes = response.body_mut().with_config().limit(1 << 20).read_to_vec();
        bytes.map(Some).map_err(|error| self.client.network(name.id(), &error.to_string()))
    }

    /// Fails where nothing can be written, before anything is done.
    ///
    /// # Errors
    /// When the network is not to be used, or there is no token.
    pub fn check_writable(&self, what: &str) -> Result<()> {
        if self.settings().offline {
            return Err(Error::Offline(format!("{what} cannot be reached")));
        }
        if self.settings().token.is_none() {
            return Err(Error::NoToken(what.into()));
        }
        Ok(())
    }

    /// Sends files, in one commit. Files that are there already are not sent again, so a push that failed is repeated
    /// by the same call.
    ///
    /// # Errors
    /// When a file cannot be read, there is no token, or the hub or the network refuses. The repository then has none
    /// of the files that had changed.
    pub fn push(&self, push: &Push<'_>, observer: &dyn Observer) -> Result<Pushed> {
        self.check_writable(&format!("{}: pushing", push.name))?;
        let repository = Repository { client: &self.client, kind: RepoKind::Model, name: push.name };
        let revision = push.revision.unwrap_or(DEFAULT_REVISION);
        self.make_repository(&repository, push.private, observer)?;
        if revision != DEFAULT_REVISION && !revision.starts_with("refs/") {
            make_branch(&repository, revision, observer)?;
        }
        let (planned, unchanged) = plan(&repository, revision, push.files, observer)?;
        if planned.is_empty() {
            return Ok(Pushed {
                url: repository.page(),
                commit: None,
                changed: Vec::new(),
                unchanged,
                sent: Vec::new(),
            });
        }
        let large: Vec<LargeFile<'_>> = planned.iter().filter_map(Planned::large).collect();
        let sent = match large.as_slice() {
            [] => Vec::new(),
            large => lfs::upload(&repository, revision, large, observer)?,
        };
        let committed = commit(&repository, revision, push.message, &planned, observer)?;
        let changed = planned.iter().map(|file| file.path().to_owned()).collect();
        Ok(Pushed { url: committed.commit_url, commit: Some(committed.commit_oid), changed, unchanged, sent })
    }

    /// Makes the repository unless it is there.
    fn make_repository(
        &self,
        repository: &Repository<'_>,
        private: bool,
        observer: &dyn Observer,
    ) -> Result<()> {
        let id = repository.name.id();
        let (owner, name) = id.split_once('/').unwrap_or(("", id));
        let mut body = json!({"name": name, "organization": owner, "type": "model"});
        if private {
            body["visibility"] = json!("private");
        }
        let url = format!("{}/api/repos/create", self.settings().endpoint);
        let bytes = body.to_string().into_bytes();
        let call = Call::post(url, id, "application/json", &bytes);
        let mut response = self.client.send(&call, observer)?;
        let status = response.status();
        if status.is_success() {
            let how = if private { "private" } else { "public" };
            observer.event(Event::Note(&format!("made {} ({how})", repository.page())));
            return Ok(());
        }
        // A token may write to a repository without being allowed to make one.
        let may_be_there = matches!(
            status,
            StatusCode::CONFLICT
                | StatusCode::UNAUTHORIZED
                | StatusCode::PAYMENT_REQUIRED
                | StatusCode::FORBIDDEN
        );
        let refusal = self.client.refusal(id, &mut response);
        if !may_be_there {
            return Err(refusal);
        }
        match repository.exists(observer) {
            Ok(Some(info)) if private && !info.private => Err(Error::Push(format!(
                "{id} is there and public, and a private repository was asked for: make it private on its settings \
                 page ({}/settings), or push to another name",
                repository.page()
            ))),
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(refusal),
        }
    }
}

fn make_branch(repository: &Repository<'_>, branch: &str, observer: &dyn Observer) -> Result<()> {
    let url = repository.api(&format!("/branch/{}", component(branch)));
    let call = Call::post(url, repository.name.id(), "application/json", b"{}");
    let mut response = repository.client.send(&call, observer)?;
    match response.status() {
        StatusCode::CONFLICT => Ok(()),
        _ => repository.check(&mut response, branch, None),
    }
}

/// Asks the hub how each file is to come, and leaves out those that are there. Returns the paths of these.
fn plan<'a>(
    repository: &Repository<'_>,
    revision: &str,
    files: &'a [PushFile],
    observer: &dyn Observer,
) -> Result<(Vec<Planned<'a>>, Vec<String>)> {
    let what = repository.name.id();
    let mut entries = Vec::new();
    for file in files {
        let sample = BASE64.encode(file.contents.read(SAMPLE)?);
        entries.push(json!({"path": file.path, "sample": sample, "size": file.contents.size()?}));
    }
    let url = repository.api(&format!("/preupload/{}", component(revision)));
    let bytes = json!({"files": entries}).to_string().into_bytes();
    let mut response =
        repository.client.send(&Call::post(url, what, "application/json", &bytes), observer)?;
    repository.check(&mut response, revision, None)?;
    let answer: Preupload = json(what, &mut response)?;

    let (mut planned, mut unchanged) = (Vec::new(), Vec::new());
    for file in files {
        let Some(way) = answer.files.iter().find(|way| way.path == file.path) else {
            let reason = format!("it does not say how {} is to come", file.path);
            return Err(Error::Protocol { what: what.into(), reason });
        };
        if way.should_ignore {
            observer.event(Event::Note(&format!(
                "{} is left out: the repository's .gitignore says so",
                file.path
            )));
            continue;
        }
        let file = match way.upload_mode.as_str() {
            // Storage takes no empty files.
            "lfs" if file.contents.size()? > 0 => Planned::new_large(file)?,
            _ => Planned::Regular { path: &file.path, bytes: file.contents.read(u64::MAX)? },
        };
        if way.oid.as_deref() == Some(file.oid().as_str()) {
            unchanged.push(file.path().to_owned());
        } else {
            planned.push(file);
        }
    }
    Ok((planned, unchanged))
}

impl<'a> Planned<'a> {
    fn new_large(file: &'a PushFile) -> Result<Self> {
        let (local, scratch) = match &file.contents {
            Contents::File(path) => (path.clone(), None),
            Contents::Bytes(bytes) => {
                // Made here and yet large: by way of a file, as all others.
                let io = |source| Error::Io { path: std::env::temp_dir(), source };
                let scratch = tempfile::NamedTempFile::new().map_err(io)?;
                std::fs::write(scratch.path(), bytes).map_err(io)?;
                (scratch.path().to_path_buf(), Some(scratch))
            }
        };
        let sha256 = sha256_of(&local)?;
        Ok(Self::Large { path: &file.path, local, size: file.contents.size()?, sha256, _scratch: scratch })
    }

    fn path(&self) -> &str {
        match self {
            Self::Regular { path, .. } | Self::Large { path, .. } => path,
        }
    }

    /// How the hub knows these contents.
    fn oid(&self) -> String {
        match self {
            Self::Regular { bytes, .. } => git_sha1(bytes),
            Self::Large { sha256, .. } => sha256.clone(),
        }
    }

    fn large(&self) -> Option<LargeFile<'_>> {
        match self {
            Self::Large { path, local, size, sha256, .. } => {
                Some(LargeFile { local, path, size: *size, sha256 })
            }
            Self::Regular { .. } => None,
        }
    }

    /// Its line in the commit.
    fn line(&self) -> Value {
        match self {
            Self::Regular { path, bytes } => json!({
                "key": "file",
                "value": {"content": BASE64.encode(bytes), "path": path, "encoding": "base64"},
            }),
            Self::Large { path, size, sha256, .. } => json!({
                "key": "lfsFile",
                "value": {"path": path, "algo": "sha256", "oid": sha256, "size": size},
            }),
        }
    }
}

/// Commits all files at once. It is not repeated after a broken connection: it may have come through, and pushing
/// again finds that out.
fn commit(
    repository: &Repository<'_>,
    revision: &str,
    message: &str,
    planned: &[Planned<'_>],
    observer: &dyn Observer,
) -> Result<Committed> {
    let (summary, description) = message.split_once('\n').unwrap_or((message, ""));
    let header = json!({
        "key": "header",
        "value": {"summary": summary.trim(), "description": description.trim()},
    });
    let mut body = header.to_string() + "\n";
    for file in planned {
        body += &file.line().to_string();
        body.push('\n');
    }
    let what = repository.name.id();
    let call = Call {
        method: Method::POST,
        url: repository.api(&format!("/commit/{}", component(revision))),
        payload: Payload::Bytes { content_type: "application/x-ndjson", bytes: body.as_bytes() },
        repeatable: false,
        ..Call::get(String::new(), what)
    };
    let mut response = repository.client.send(&call, observer)?;
    repository.check(&mut response, revision, None)?;
    json(what, &mut response)
}
