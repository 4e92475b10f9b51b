//! Routes that read.

use axum::body::Body;
use axum::http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::state::{Entry, Repo, git_sha1};
use super::storage::serve;
use super::{Answer, Request, State, json as answer, refuse};

pub fn whoami(state: &State, request: &Request) -> Answer {
    match state.account(&request.headers) {
        Ok(Some(account)) => {
            let role = if account.may_write { "write" } else { "read" };
            let access =
                json!({"type": "access_token", "accessToken": {"displayName": "test", "role": role}});
            let who = json!({"type": "user", "id": "1", "name": account.name, "orgs": [], "auth": access});
            answer(StatusCode::OK, &who)
        }
        Ok(None) => refuse(StatusCode::UNAUTHORIZED, "", "Invalid username or password."),
        Err(refusal) => *refusal,
    }
}

/// The repository, if this person may see it.
pub fn visible(state: &State, request: &Request, kind: &str, id: &str) -> Result<Repo, Box<Answer>> {
    let account = state.account(&request.headers)?;
    let owner = id.split('/').next();
    let repo = state.repos.get(&(kind.to_owned(), id.to_owned()));
    let is_owner = account.is_some_and(|account| Some(account.name.as_str()) == owner);
    match (repo, account) {
        (Some(repo), _) if !repo.private || is_owner => Ok(repo.clone()),
        (_, None) => {
            Err(Box::new(refuse(StatusCode::UNAUTHORIZED, "RepoNotFound", "Invalid username or password.")))
        }
        _ => Err(Box::new(refuse(StatusCode::NOT_FOUND, "RepoNotFound", "Repository not found"))),
    }
}

/// The commit of a branch, or a commit by its hash.
fn commit(repo: &Repo, revision: &str) -> Result<String, Box<Answer>> {
    if repo.commits.contains_key(revision) {
        return Ok(revision.into());
    }
    let message = format!("Invalid rev id: {revision}");
    let missing = || Box::new(refuse(StatusCode::NOT_FOUND, "RevisionNotFound", &message));
    repo.branches.get(revision).cloned().ok_or_else(missing)
}

pub fn api(state: &State, request: &Request, kind: &str, id: &str, rest: &[&str]) -> Answer {
    inner_api(state, request, kind, id, rest).unwrap_or_else(|refusal| *refusal)
}

fn inner_api(
    state: &State,
    request: &Request,
    kind: &str,
    id: &str,
    rest: &[&str],
) -> Result<Answer, Box<Answer>> {
    let repo = visible(state, request, kind, id)?;
    Ok(match rest {
        [] => info(&repo, id, repo.branches.get("main").cloned()),
        ["revision", revision] => info(&repo, id, Some(commit(&repo, revision)?)),
        ["tree", revision] => tree(state, request, &repo, &commit(&repo, revision)?),
        _ => refuse(StatusCode::NOT_FOUND, "", "no such route"),
    })
}

fn info(repo: &Repo, id: &str, sha: Option<String>) -> Answer {
    let files = sha.as_ref().and_then(|sha| repo.commits.get(sha));
    let siblings: Vec<Value> =
        files.into_iter().flat_map(|files| files.keys()).map(|path| json!({"rfilename": path})).collect();
    let gated = if repo.gated { json!("auto") } else { json!(false) };
    answer(
        StatusCode::OK,
        &json!({
            "_id": "1", "id": id, "modelId": id, "sha": sha, "private": repo.private, "gated": gated,
            "disabled": false, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings,
        }),
    )
}

/// The list of files, a page at a time, with folders among them as on the hub.
fn tree(state: &State, request: &Request, repo: &Repo, commit: &str) -> Answer {
    let mut entries = Vec::new();
    let mut folder = "";
    for (path, entry) in &repo.commits[commit] {
        if let Some((parent, _)) = path.rsplit_once('/')
            && parent != folder
        {
            entries.push(
                json!({"type": "directory", "oid": git_sha1(parent.as_bytes()), "size": 0, "path": parent}),
            );
            folder = parent;
        }
        entries.push(match entry {
            Entry::Regular(bytes) => {
                json!({"type": "file", "oid": git_sha1(bytes), "size": bytes.len(), "path": path})
            }
            Entry::Large { sha256, size } => {
                let size = state.claimed_size.unwrap_or(*size);
                let pointer =
                    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n");
                json!({
                    "type": "file", "oid": git_sha1(pointer.as_bytes()), "size": size, "path": path,
                    "lfs": {"oid": sha256, "size": size, "pointerSize": pointer.len()},
                })
            }
        });
    }
    let start = request.query.split('&').find_map(|pair| pair.strip_prefix("cursor="));
    let start: usize = start.map_or(0, |start| start.parse().unwrap());
    let page = if state.page == 0 { entries.len().max(1) } else { state.page };
    let end = (start + page).min(entries.len());
    let mut answer = answer(StatusCode::OK, &Value::Array(entries[start..end].to_vec()));
    if end < entries.len() {
        let path = request.parts.join("/");
        let link = format!(
            "<http://{}/{path}?recursive=true&expand=false&cursor={end}>; rel=\"next\"",
            request.address
        );
        answer.headers_mut().insert("link", link.parse().unwrap());
    }
    answer
}

/// Where a file is: large ones in storage, at a signed address; others behind a relative one.
pub fn resolve(state: &State, request: &Request, kind: &str, id: &str, revision: &str, file: &str) -> Answer {
    inner_resolve(state, request, kind, id, revision, file).unwrap_or_else(|refusal| *refusal)
}

fn inner_resolve(
    state: &State,
    request: &Request,
    kind: &str,
    id: &str,
    revision: &str,
    file: &str,
) -> Result<Answer, Box<Answer>> {
    let repo = visible(state, request, kind, id)?;
    if repo.gated && state.account(&request.headers)?.is_none() {
        let message = format!("Access to {kind} {id} is restricted. You must be authenticated to access it.");
        return Err(Box::new(refuse(StatusCode::UNAUTHORIZED, "GatedRepo", &message)));
    }
    let commit = commit(&repo, revision)?;
    let Some(entry) = repo.commits[&commit].get(file) else {
        let mut refusal = refuse(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found");
        refusal.headers_mut().insert("x-repo-commit", commit.parse().unwrap());
        return Err(Box::new(refusal));
    };
    let (status, location) = match entry {
        // Storage has another host than the hub, so that what may not go there shows.
        Entry::Large { sha256, .. } => (
            StatusCode::FOUND,
            format!("http://localhost:{}/storage/objects/{sha256}?signature=read", request.address.port()),
        ),
        Entry::Regular(_) => {
            (StatusCode::TEMPORARY_REDIRECT, format!("/api/resolve-cache/{kind}/{id}/{commit}/{file}"))
        }
    };
    let mut response = Response::builder()
        .status(status)
        .header("location", location)
        .header("x-repo-commit", &commit)
        .header("etag", format!("\"{}\"", entry.etag()));
    if let Entry::Large { sha256, size } = entry {
        let size = size.to_string();
        response = response.header("x-linked-etag", format!("\"{sha256}\"")).header("x-linked-size", size);
    }
    Ok(response.body(Body::empty()).unwrap())
}

/// The contents of a file that is not large.
pub fn contents(
    state: &mut State,
    request: &Request,
    kind: &str,
    id: &str,
    commit: &str,
    file: &str,
) -> Answer {
    let repo = match visible(state, request, kind, id) {
        Ok(repo) => repo,
        Err(refusal) => return *refusal,
    };
    let Some(Entry::Regular(bytes)) = repo.commits.get(commit).and_then(|files| files.get(file)) else {
        return refuse(StatusCode::NOT_FOUND, "EntryNotFound", "Entry not found");
    };
    let mut response = serve(state, request, file, bytes);
    if request.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    let headers = response.headers_mut();
    headers.insert("x-repo-commit", commit.parse().unwrap());
    headers.insert("etag", format!("\"{}\"", git_sha1(bytes)).parse().unwrap());
    response
}
