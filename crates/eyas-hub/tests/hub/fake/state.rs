//! What the fake hub holds.

use std::collections::{BTreeMap, HashMap};

use axum::http::{HeaderMap, StatusCode};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::{Answer, refuse};

/// A file of a commit.
#[derive(Clone)]
pub enum Entry {
    Regular(Vec<u8>),
    Large { sha256: String, size: u64 },
}

#[derive(Clone, Default)]
pub struct Repo {
    pub private: bool,
    pub gated: bool,
    /// Branches and their commits.
    pub branches: BTreeMap<String, String>,
    pub commits: HashMap<String, BTreeMap<String, Entry>>,
    pub messages: Vec<String>,
}

/// Who has a token.
#[derive(Clone)]
pub struct Account {
    pub name: String,
    pub may_write: bool,
}

/// Something that goes wrong, so many times, where a path contains a text.
pub struct Fault {
    pub path: &'static str,
    pub times: usize,
    pub kind: FaultKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// An answer instead of the right one, with a `Retry-After` where one is named.
    Status(u16, Option<u64>),
    /// The connection ends after so many bytes of the file.
    Cut(usize),
    /// A byte of the file is another.
    Corrupt,
    /// The whole file comes, whatever part was asked for.
    IgnoreRange,
}

#[derive(Default)]
pub struct State {
    pub repos: HashMap<(String, String), Repo>,
    pub objects: HashMap<String, Vec<u8>>,
    /// Parts of an upload, by checksum and number.
    pub parts: HashMap<(String, usize), Vec<u8>>,
    pub accounts: HashMap<String, Account>,
    pub log: Vec<String>,
    pub faults: Vec<Fault>,
    /// Entries of a page of the list of files; 0 for all.
    pub page: usize,
    /// Bytes of a part; larger files come in parts.
    pub chunk: Option<u64>,
    /// Bytes that a file is said to have, whatever it has.
    pub claimed_size: Option<u64>,
}

impl State {
    /// Adds a repository with a commit on `main` and returns the commit.
    pub fn add(&mut self, kind: &str, id: &str, files: &[(&str, &[u8])]) -> String {
        let mut entries = BTreeMap::new();
        for (path, bytes) in files {
            let entry = if is_large(path, bytes.len() as u64) {
                let sha256 = sha256(bytes);
                self.objects.insert(sha256.clone(), bytes.to_vec());
                Entry::Large { sha256, size: bytes.len() as u64 }
            } else {
                Entry::Regular(bytes.to_vec())
            };
            entries.insert((*path).to_owned(), entry);
        }
        self.repos.entry((kind.into(), id.into())).or_default();
        self.commit(kind, id, "main", entries, "first")
    }

    /// Adds a commit to a branch.
    pub fn commit(
        &mut self,
        kind: &str,
        id: &str,
        branch: &str,
        entries: BTreeMap<String, Entry>,
        message: &str,
    ) -> String {
        let repo = self.repos.get_mut(&(kind.to_owned(), id.to_owned())).unwrap();
        let commit = hexadecimal(&Sha1::digest(format!("{kind} {id} {branch} {}", repo.messages.len())));
        repo.branches.insert(branch.into(), commit.clone());
        repo.commits.insert(commit.clone(), entries);
        repo.messages.push(message.into());
        commit
    }

    pub fn repo(&mut self, kind: &str, id: &str) -> &mut Repo {
        self.repos.get_mut(&(kind.to_owned(), id.to_owned())).unwrap()
    }

    /// The contents of a file on a branch.
    pub fn contents(&self, kind: &str, id: &str, branch: &str, path: &str) -> Option<Vec<u8>> {
        let repo = self.repos.get(&(kind.to_owned(), id.to_owned()))?;
        match repo.commits.get(repo.branches.get(branch)?)?.get(path)? {
            Entry::Regular(bytes) => Some(bytes.clone()),
            Entry::Large { sha256, .. } => self.objects.get(sha256).cloned(),
        }
    }

    /// How the contents of a file on a branch are known.
    pub fn etag(&mut self, kind: &str, id: &str, branch: &str, path: &str) -> String {
        let repo = self.repo(kind, id);
        repo.commits[&repo.branches[branch]][path].etag()
    }

    pub fn account(&self, headers: &HeaderMap) -> Result<Option<&Account>, Box<Answer>> {
        let Some(value) = headers.get("authorization") else { return Ok(None) };
        let token = value.to_str().unwrap_or_default().trim_start_matches("Bearer ");
        self.accounts.get(token).map(Some).ok_or_else(|| {
            Box::new(refuse(StatusCode::UNAUTHORIZED, "", "Invalid credentials in Authorization header"))
        })
    }

    /// The next fault of some kind for a path, used up by asking.
    pub fn fault(&mut self, path: &str, is_kind: impl Fn(FaultKind) -> bool) -> Option<FaultKind> {
        let mut faults = self.faults.iter_mut();
        let fault =
            faults.find(|fault| fault.times > 0 && path.contains(fault.path) && is_kind(fault.kind))?;
        fault.times -= 1;
        Some(fault.kind)
    }

    pub fn status_fault(&mut self, path: &str) -> Option<Answer> {
        let kind = self.fault(path, |kind| matches!(kind, FaultKind::Status(..)))?;
        let FaultKind::Status(status, retry_after) = kind else { return None };
        let mut answer = refuse(StatusCode::from_u16(status).unwrap(), "", "a fault on demand");
        if let Some(seconds) = retry_after {
            answer.headers_mut().insert("retry-after", seconds.to_string().parse().unwrap());
        }
        Some(answer)
    }
}

impl Entry {
    /// The name of the contents: the SHA-256 of large files, git's hash of others.
    pub fn etag(&self) -> String {
        match self {
            Self::Large { sha256, .. } => sha256.clone(),
            Self::Regular(bytes) => git_sha1(bytes),
        }
    }
}

/// Whether a file goes to storage: by its ending, as the hub's own attributes have it, or by its size.
pub fn is_large(path: &str, size: u64) -> bool {
    const ENDINGS: [&str; 4] = [".safetensors", ".bin", ".gguf", ".parquet"];
    ENDINGS.iter().any(|ending| path.ends_with(ending)) || size > 10 << 20
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub fn git_sha1(bytes: &[u8]) -> String {
    hexadecimal(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}
