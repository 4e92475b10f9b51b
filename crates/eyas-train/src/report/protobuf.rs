//! Protocol buffers' wire format, as far as event files and run logs need it: fields are written by their numbers,
//! and walked through when a log is read again.
//!
//! Format: "Encoding" in the Protocol Buffers documentation.

/// A message that is being written, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message(Vec<u8>);

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

impl Message {
    /// A whole number, a flag or a constant of an enumeration.
    pub(crate) fn number(mut self, field: u64, value: u64) -> Self {
        self.key(field, VARINT);
        self.varint(value);
        self
    }

    /// A `double`.
    pub(crate) fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, FIXED64);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A `float`.
    pub(crate) fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, FIXED32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// Text.
    pub(crate) fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message within this one.
    pub(crate) fn message(self, field: u64, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// The bytes written.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.key(field, BYTES);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The value of a field that was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Field<'a> {
    /// A varint.
    Number(u64),
    /// Eight bytes.
    Fixed64([u8; 8]),
    /// Text, or a message.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32([u8; 4]),
}

/// The fields of a message, with their numbers; `None` where the bytes are no message.
pub(crate) fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes)?;
        let field = match key & 7 {
            VARINT => Field::Number(read_varint(&mut bytes)?),
            FIXED64 => Field::Fixed64(take(&mut bytes, 8)?.try_into().ok()?),
            BYTES => {
                let length = usize::try_from(read_varint(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            FIXED32 => Field::Fixed32(take(&mut bytes, 4)?.try_into().ok()?),
            _ => return None,
        };
        found.push((key >> 3, field));
    }
    Some(found)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_nested_messages_are_laid_out_as_the_format_says() {
        let inner = Message::default().number(1, 150);
        assert_eq!(inner.as_bytes(), [0x08, 0x96, 0x01]);
        let outer = Message::default().message(3, &inner).text(2, "testing").float(4, 1.0).double(5, 1.0);
        let expected = b"\x1a\x03\x08\x96\x01\x12\x07testing\x25\0\0\x80\x3f\x29\0\0\0\0\0\0\xf0\x3f";
        assert_eq!(outer.as_bytes(), expected);
    }

    #[test]
    fn what_is_written_is_read_and_a_torn_message_is_noticed() {
        let message = Message::default().number(16, u64::MAX).text(1, "a").float(2, 0.5).double(3, -1.0);
        let read = fields(message.as_bytes()).unwrap();
        assert_eq!(
            read,
            [
                (16, Field::Number(u64::MAX)),
                (1, Field::Bytes(b"a")),
                (2, Field::Fixed32(0.5f32.to_le_bytes())),
                (3, Field::Fixed64((-1f64).to_le_bytes())),
            ]
        );
        let bytes = message.as_bytes();
        assert_eq!(fields(&bytes[..bytes.len() - 1]), None);
        assert_eq!(fields(&[0xff; 11]), None);
        assert_eq!(fields(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), None);
    }
}
