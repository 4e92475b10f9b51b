//! Spelling tricks and slips: letters apart, letters as digits, words run together, letters missing or swapped.

use std::collections::{HashMap, HashSet};

use super::{Token, tokens};

/// What is known of words.
#[derive(Debug, Default)]
pub(crate) struct Spelling {
    /// Short forms and what they stand for.
    expansions: HashMap<String, Vec<String>>,
    /// Every Latin word of the rules.
    known: HashSet<String>,
    /// The words that disguises and slips are resolved to.
    keys: Vec<String>,
    /// Real words that are near a key and are not slips of it.
    not_slips: HashSet<String>,
    /// Sequences that say nothing of their own, longest first.
    fillers: Vec<Vec<String>>,
}

impl Spelling {
    pub(crate) fn new<'a>(
        expansions: impl IntoIterator<Item = (&'a String, &'a String)>,
        keys: &[String],
        not_slips: &[String],
        fillers: &[String],
    ) -> Self {
        let plain = |text: &str| tokens(text).into_iter().map(|token| token.text).collect::<Vec<_>>();
        let mut fillers: Vec<_> = fillers.iter().map(|filler| plain(filler)).collect();
        fillers.sort_by_key(|filler| std::cmp::Reverse(filler.len()));
        let expansions: HashMap<_, _> =
            expansions.into_iter().map(|(short, long)| (short.clone(), plain(long))).collect();
        let mut spelling = Self {
            known: keys.iter().chain(not_slips).cloned().collect(),
            keys: keys.iter().map(|key| plain(key).concat()).collect(),
            not_slips: not_slips.iter().cloned().collect(),
            expansions,
            fillers,
        };
        let words: Vec<_> = spelling.expansions.keys().cloned().collect();
        spelling.known.extend(words);
        let words: Vec<_> = spelling.fillers.iter().flatten().cloned().collect();
        spelling.known.extend(words);
        spelling
    }

    /// Tells of a word that rules use.
    pub(crate) fn learn(&mut self, word: &str) {
        self.known.insert(word.to_owned());
    }

    /// Expands a word as [`Self::read`] does, for words of patterns.
    pub(crate) fn expand(&self, word: &str) -> Vec<String> {
        self.expansions.get(word).cloned().unwrap_or_else(|| vec![word.to_owned()])
    }

    /// Tokens of a text in plain spelling, without fillers.
    pub(crate) fn read(&self, text: &str) -> Vec<Token> {
        let tokens = self.join_letters(self.join_characters(tokens(text)));
        let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
        for token in tokens {
            if token.is_mark() || token.is_number() || !token.text.is_ascii() {
                out.push(token);
                continue;
            }
            for word in self.plain(&token.text) {
                for word in self.expand(&word) {
                    out.push(Token { text: word, glued: token.glued });
                }
            }
        }
        self.drop_fillers(self.join_halves(out))
    }

    /// The words that a word stands for.
    fn plain(&self, word: &str) -> Vec<String> {
        if self.known.contains(word) {
            return vec![word.to_owned()];
        }
        if let Some(word) = self.undisguise(word).or_else(|| self.unstretch(word)) {
            return vec![word];
        }
        if let Some(words) = self.split(word) {
            return words;
        }
        vec![self.nearest(word).unwrap_or_else(|| word.to_owned())]
    }

    /// `k1ll`, `su!c!de`, `s*icide`.
    fn undisguise(&self, word: &str) -> Option<String> {
        if word.bytes().all(|b| b.is_ascii_alphabetic()) || !word.bytes().any(|b| b.is_ascii_alphabetic()) {
            return None;
        }
        for one in ['i', 'l'] {
            let read: String = word
                .chars()
                .map(|c| match c {
                    '1' | '!' | '|' => one,
                    '0' => 'o',
                    '3' | '€' => 'e',
                    '4' | '@' => 'a',
                    '5' | '$' => 's',
                    '7' | '+' => 't',
                    '8' => 'b',
                    '9' => 'g',
                    other => other,
                })
                .collect();
            if self.known.contains(&read) {
                return Some(read);
            }
            if let Some(read) = self.unstretch(&read) {
                return Some(read);
            }
            if read.bytes().all(|b| b.is_ascii_alphabetic()) {
                if let Some(near) = self.nearest(&read) {
                    return Some(near);
                }
            } else if let Some(key) = self.keys.iter().find(|key| hides(&read, key)) {
                return Some(key.clone());
            }
        }
        None
    }

    /// `dieeeee`, `kiiill`.
    fn unstretch(&self, word: &str) -> Option<String> {
        let bytes = word.as_bytes();
        if !bytes.windows(3).any(|three| three[0] == three[1] && three[1] == three[2]) {
            return None;
        }
        // Each long run is a double or a single letter; the first of few combinations that is known.
        let mut candidates = vec![String::new()];
        let mut at = 0;
        while at < bytes.len() {
            let run = bytes[at..].iter().take_while(|b| **b == bytes[at]).count();
            let letter = char::from(bytes[at]);
            let lengths: &[usize] = if run >= 3 { &[1, 2] } else { std::slice::from_ref(&run) };
            if candidates.len() * lengths.len() > 64 {
                return None;
            }
            candidates = candidates
                .iter()
                .flat_map(|start| {
                    lengths.iter().map(move |n| format!("{start}{}", letter.to_string().repeat(*n)))
                })
                .collect();
            at += run;
        }
        candidates.into_iter().find(|word| self.known.contains(word))
    }

    /// `killmyself`: two words or more, one of them a key.
    fn split(&self, word: &str) -> Option<Vec<String>> {
        if !(6..=40).contains(&word.len()) || self.not_slips.contains(word) {
            return None;
        }
        let words = self.segment(word)?;
        (words.len() > 1 && words.iter().any(|word| word.len() > 2 && self.keys.contains(word)))
            .then_some(words)
    }

    /// The segmentation into known words that has the fewest; `i` and `a` are the only words of one letter.
    fn segment(&self, word: &str) -> Option<Vec<String>> {
        if !word.is_ascii() {
            return None;
        }
        let mut best: Vec<Option<Vec<String>>> = vec![None; word.len() + 1];
        best[0] = Some(Vec::new());
        for end in 1..=word.len() {
            for start in end.saturating_sub(14)..end {
                let piece = &word[start..end];
                if piece.len() == 1 && !matches!(piece, "i" | "a") || !self.known.contains(piece) {
                    continue;
                }
                if let Some(before) = &best[start]
                    && best[end].as_ref().is_none_or(|now| before.len() + 1 < now.len())
                {
                    let mut words = before.clone();
                    words.push(piece.to_owned());
                    best[end] = Some(words);
                }
            }
        }
        best.pop().flatten()
    }

    /// `myslef`, `suicde`.
    fn nearest(&self, word: &str) -> Option<String> {
        let allowed = match word.len() {
            0..=3 => return None,
            4..=7 => 1,
            _ => 2,
        };
        if word.len() > 24 || self.not_slips.contains(word) {
            return None;
        }
        let first = word.as_bytes()[0];
        self.keys
            .iter()
            .filter(|key| key.len() > 3 && key.len().abs_diff(word.len()) <= allowed)
            // Short words have too many real neighbours: only swapped letters count.
            .filter(|key| word.len() > 4 || same_letters(word, key))
            .filter(|key| word.len() > 5 || key.as_bytes()[0] == first || key.as_bytes()[1] == first)
            .map(|key| (strsim::osa_distance(word, key), key))
            .filter(|(distance, _)| *distance <= allowed)
            .min()
            .map(|(_, key)| key.clone())
    }

    /// `自。殺`: punctuation inside a key of Chinese characters.
    fn join_characters(&self, tokens: Vec<Token>) -> Vec<Token> {
        let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            let hidden = token.is_mark()
                && token.glued
                && out.last().zip(tokens.peek()).is_some_and(|(before, after)| {
                    let parts =
                        |key: &String| key.strip_prefix(before.text.as_str()) == Some(after.text.as_str());
                    after.glued && self.keys.iter().any(parts)
                });
            if !hidden {
                out.push(token);
            }
        }
        out
    }

    /// `k m s`, `d.i.e`, `i w a n t t o d i e`: single letters in a row that spell known words.
    fn join_letters(&self, tokens: Vec<Token>) -> Vec<Token> {
        let is_letter = |token: &Token| token.text.len() == 1 && !token.is_mark();
        let mut out = Vec::with_capacity(tokens.len());
        let mut at = 0;
        while at < tokens.len() {
            let mut letters = String::new();
            let mut end = at;
            while end < tokens.len() && letters.len() < 60 {
                if is_letter(&tokens[end]) {
                    letters.push_str(&tokens[end].text);
                } else if !(tokens[end].is_mark()
                    && tokens[end].glued
                    && tokens.get(end + 1).is_some_and(|next| next.glued && is_letter(next)))
                {
                    break;
                }
                end += 1;
            }
            let mut used = 0;
            if letters.len() >= 3 {
                // The longest stretch from here that spells something.
                for take in (3..=letters.len()).rev() {
                    let stretch = &letters[..take];
                    let read =
                        self.undisguise(stretch).map(|word| vec![word]).or_else(|| self.segment(stretch));
                    let Some(words) = read else { continue };
                    if words.iter().all(|word| word.len() < 3) {
                        continue;
                    }
                    out.extend(words.into_iter().map(|word| Token::new(word, false)));
                    used = take;
                    break;
                }
            }
            if used == 0 {
                out.push(tokens[at].clone());
                at += 1;
                continue;
            }
            while used > 0 {
                used -= usize::from(is_letter(&tokens[at]));
                at += 1;
            }
        }
        out
    }

    /// `sui cide`, `over dose`, `k ill`: two or three pieces of which not all are words, that make a key of five letters.
    fn join_halves(&self, tokens: Vec<Token>) -> Vec<Token> {
        let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
        let mut at = 0;
        'next: while at < tokens.len() {
            for count in [3, 2] {
                let Some(pieces) = tokens.get(at..at + count) else { continue };
                if pieces.iter().any(|piece| piece.is_mark() || piece.is_number() || !piece.text.is_ascii()) {
                    continue;
                }
                let joined: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
                let strange = pieces.iter().any(|piece| !self.known.contains(&piece.text));
                if !strange || joined.len() > 24 || joined.len() < 4 {
                    continue;
                }
                let key = if self.keys.contains(&joined) { Some(joined) } else { self.undisguise(&joined) };
                if let Some(key) =
                    key.filter(|key| key.len() >= 5 || pieces.iter().any(|p| p.text.len() == 1))
                {
                    out.push(Token::new(key, pieces[0].glued));
                    at += count;
                    continue 'next;
                }
            }
            out.push(tokens[at].clone());
            at += 1;
        }
        out
    }

    fn drop_fillers(&self, tokens: Vec<Token>) -> Vec<Token> {
        self.drop_filler_words(tokens, |token| &token.text)
    }

    /// The same for words of a pattern.
    pub(crate) fn without_fillers(&self, words: Vec<String>) -> Vec<String> {
        self.drop_filler_words(words, |word| word)
    }

    fn drop_filler_words<T>(&self, words: Vec<T>, text: impl Fn(&T) -> &String) -> Vec<T> {
        let mut keep = vec![true; words.len()];
        let mut at = 0;
        while at < words.len() {
            let filler = self.fillers.iter().find(|filler| {
                words.get(at..at + filler.len()).is_some_and(|here| here.iter().map(&text).eq(filler.iter()))
            });
            let length = filler.map_or(0, Vec::len);
            keep[at..at + length].fill(false);
            at += length.max(1);
        }
        words.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(word, _)| word).collect()
    }
}

fn same_letters(a: &str, b: &str) -> bool {
    let sorted = |word: &str| {
        let mut letters: Vec<u8> = word.bytes().collect();
        letters.sort_unstable();
        letters
    };
    sorted(a) == sorted(b)
}

/// Whether a word with `*` for letters may be `key`: each run of signs stands for one letter, or for as many as there are.
fn hides(word: &str, key: &str) -> bool {
    let word: Vec<u8> = word.bytes().map(|b| if b.is_ascii_alphabetic() { b } else { b'*' }).collect();
    let letters = word.iter().filter(|b| **b != b'*').count();
    letters >= 2
        && word.len() == key.len()
        && key.len() > 2
        && word.iter().zip(key.bytes()).all(|(shown, letter)| *shown == b'*' || *shown == letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelling() -> Spelling {
        let strings = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let expansions = [("wanna".to_owned(), "want to".to_owned())];
        let mut spelling = Spelling::new(
            expansions.iter().map(|(a, b)| (a, b)),
            &strings(&["suicide", "suicidal", "myself", "kill", "overdose", "kms", "want", "life"]),
            &strings(&["wand", "like"]),
            &strings(&["just", "kind of"]),
        );
        for word in ["i", "to", "die", "end", "my", "over", "dose"] {
            spelling.learn(word);
        }
        spelling
    }

    fn read(text: &str) -> String {
        let words: Vec<_> = spelling().read(text).into_iter().map(|token| token.text).collect();
        words.join(" ")
    }

    #[test]
    fn disguises() {
        assert_eq!(read("k1ll mys3lf"), "kill myself");
        assert_eq!(read("s*icide su!c!de $uicide"), "suicide suicide suicide");
        assert_eq!(read("k**l"), "kill");
    }

    #[test]
    fn letters_apart() {
        assert_eq!(read("k m s"), "kms");
        assert_eq!(read("s.u.i.c.i.d.e"), "suicide");
        assert_eq!(read("i w a n t t o d i e"), "i want to die");
        assert_eq!(read("sui c1de"), "suicide");
        assert_eq!(read("suicide 40 kill"), "suicide 40 kill");
    }

    #[test]
    fn slips_and_stretches() {
        assert_eq!(read("klil myslef"), "kill myself");
        assert_eq!(read("suicde sucidal"), "suicide suicidal");
        assert_eq!(read("dieeeee"), "die");
        assert_eq!(read("wand"), "wand");
    }

    #[test]
    fn words_run_together() {
        assert_eq!(read("killmyself endmylife"), "kill myself end my life");
    }

    #[test]
    fn fillers_go_and_short_forms_are_spelled_out() {
        assert_eq!(read("i just kind of wanna die"), "i want to die");
    }
}
