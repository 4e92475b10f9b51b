//! The bytes of single tokens, and the texts that the tokenizer reads as control tokens.

use tokenizers::DecoderWrapper;

use super::Tokenizer;

impl Tokenizer {
    /// The bytes that a token stands for, which may be a part of a character; none for an id outside the vocabulary.
    ///
    /// Joined over a text's tokens they are the text, but for what decoders take off its start.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return token.into_bytes();
        }
        if self.inner.get_decoder().is_some_and(is_byte_level) {
            return token.chars().flat_map(byte_level).collect();
        }
        match token.strip_prefix("<0x").and_then(|hex| hex.strip_suffix('>')) {
            Some(hex) if hex.len() == 2 => match u8::from_str_radix(hex, 16) {
                Ok(byte) => vec![byte],
                Err(_) => token.into_bytes(),
            },
            _ => token.replace('▁', " ").into_bytes(),
        }
    }

    /// Texts that become one control token wherever they stand in a text: the special tokens, and added ones in angle
    /// or square brackets. Break them up in text that must not steer the model.
    pub fn control_texts(&self) -> Vec<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().values();
        let mut texts: Vec<String> = added
            .filter(|token| token.special || token.content.starts_with(['<', '[']))
            .map(|token| token.content.trim().to_owned())
            // One character cannot be broken up.
            .filter(|text| text.chars().nth(1).is_some())
            .collect();
        texts.sort();
        texts
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// The byte that byte-level BPE writes as this character: printable Latin-1 as itself, the other bytes in their order
/// from U+0100 on. A character outside the scheme stands for itself.
fn byte_level(character: char) -> Vec<u8> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    let byte = match code {
        0..0x100 => is_printable(code).then_some(code),
        _ => (0..0x100).filter(|&byte| !is_printable(byte)).nth((code - 0x100) as usize),
    };
    match byte.and_then(|byte| u8::try_from(byte).ok()) {
        Some(byte) => vec![byte],
        None => character.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_level_alphabet_is_gpt_2s() {
        let bytes: Vec<u8> = "Ġå¥½Ċ!".chars().flat_map(byte_level).collect();
        assert_eq!(bytes, [0x20, 0xe5, 0xa5, 0xbd, 0x0a, 0x21]);
        let all: std::collections::BTreeSet<u8> = (0..0x144)
            .filter_map(char::from_u32)
            .filter(|c| byte_level(*c).len() == 1)
            .flat_map(byte_level)
            .collect();
        assert_eq!(all.len(), 256);
        assert_eq!(byte_level('好'), "好".as_bytes());
    }
}
