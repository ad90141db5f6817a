//! How numbers, bytes and texts stand in records and checkpoint slices: little-endian, lengths and counts as LEB128 varints.
//!
//! Both are already checksummed by what holds them. Nevertheless nothing here panics on foreign bytes: a record that
//! can't be understood is [`Malformed`], which its reader treats like damage.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The bytes pass their checksum but aren't what they claim to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the bytes are no record of this version")]
pub struct Malformed;

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// As [`put_bytes`] puts them, however they are kept.
pub(super) fn put_attributes(out: &mut Vec<u8>, parts: [&[u8]; 3]) {
    put_varint(out, parts.iter().map(|part| part.len() as u64).sum());
    for part in parts {
        out.extend_from_slice(part);
    }
}

pub(super) fn put_ip(out: &mut Vec<u8>, ip: Option<IpAddr>) {
    match ip {
        None => out.push(0),
        Some(IpAddr::V4(ip)) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            out.push(16);
            out.extend_from_slice(&ip.octets());
        }
    }
}

/// What is left to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    pub(super) fn slice(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// A varint that must fit in 32 bits.
    pub(super) fn varint32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        self.slice(len)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    pub(super) fn ip(&mut self) -> Result<Option<IpAddr>, Malformed> {
        match self.u8()? {
            0 => Ok(None),
            4 => Ok(Some(Ipv4Addr::from(self.array::<4>()?).into())),
            16 => Ok(Some(Ipv6Addr::from(self.array::<16>()?).into())),
            _ => Err(Malformed),
        }
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_come_back() {
        let mut out = Vec::new();
        for value in [0, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            put_varint(&mut out, value);
        }
        let ips = [None, Some(IpAddr::from([127, 0, 0, 1])), Some(IpAddr::from([7u16; 8]))];
        for ip in ips {
            put_ip(&mut out, ip);
        }
        let mut take = Take(&out);
        for value in [0, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(take.varint(), Ok(value));
        }
        for ip in ips {
            assert_eq!(take.ip(), Ok(ip));
        }
        assert!(take.0.is_empty());
        assert_eq!(take.u8(), Err(Malformed));
    }

    #[test]
    fn foreign_bytes_are_malformed_not_a_panic() {
        assert_eq!(Take(&[0xff; 10]).varint(), Err(Malformed));
        assert_eq!(Take(&[5, 1, 2]).bytes(), Err(Malformed));
        assert_eq!(Take(&[9]).ip(), Err(Malformed));
    }
}
