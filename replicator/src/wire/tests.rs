//! The oracle: decoding undoes encoding, for every message and every split into chunks; and nothing
//! that arrives can do more than be refused.

use super::reply::INVALID_THERE;
use super::*;
use crate::message::{
    Asker, Content, DamagedBlock, Digest, Digested, Fetch, Fetched, Found, GrantDigest, Known,
    ListedBlock, Payload, Pulled, Reach, ReadBlocks, Refusal, ReplicaState, Sealed, Source,
    SourceFault, Verified, checksum,
};
use crate::packed::Packed;
use crate::words::{
    Block, Blocks, DiskId, Epoch, Extent, Extents, Incarnation, Seq, Starts, StoreId, Version,
};
use bytes::BytesMut;
use std::sync::Arc;

/// A small generator (splitmix64): the tests need variety, not quality, and the same one each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    fn seq(&mut self) -> Seq {
        Seq(self.roll() & Seq::MAX.0)
    }

    fn epoch(&mut self) -> Epoch {
        Epoch::from_u64(self.roll())
    }

    fn version(&mut self) -> Version {
        Version::new(self.epoch(), self.seq())
    }

    fn extents(&mut self) -> Extents {
        let first = self.below(1 << 31) as u32;
        Extents::new(
            Extent(first),
            Extent(first + 1 + self.below(1 << 30) as u32),
        )
    }

    fn asker(&mut self) -> Asker {
        Asker {
            disk: DiskId::from_u128(u128::from(self.roll()) << 64 | u128::from(self.roll())),
            epoch: self.epoch(),
            incarnation: Incarnation(self.roll()),
        }
    }

    fn blocks(&mut self, most: u32) -> Blocks {
        Blocks::new(
            Block(self.below(1 << 50)),
            1 + self.below(most.into()) as u32,
        )
    }

    fn data(&mut self, blocks: u32) -> Bytes {
        let mut data = BytesMut::zeroed(blocks as usize * BLOCK_BYTES as usize);
        for place in data.chunks_exact_mut(512) {
            place[..8].copy_from_slice(&self.roll().to_le_bytes());
        }
        data.freeze()
    }

    fn request(&mut self) -> Request {
        let asker = self.asker();
        let (from, below) = (self.epoch(), self.epoch());
        match self.below(16) {
            13 => Request::Heal {
                asker,
                source: Source {
                    store: StoreId::from_u128(u128::from(self.roll()) << 64),
                    incarnation: Incarnation(self.roll()),
                },
                from,
                below,
                blocks: self.blocks(MAX_DATA_BLOCKS),
            },
            14 => Request::Digest {
                asker,
                from,
                extents: self.extents(),
            },
            15 => Request::Verify {
                asker,
                blocks: self.blocks(MAX_DATA_BLOCKS),
            },
            7 => Request::Survey {
                asker,
                from,
                below,
                extents: self.extents(),
                start: Block(self.below(1 << 50)),
            },
            8 => Request::Pull {
                asker,
                source: Source {
                    store: StoreId::from_u128(u128::from(self.roll()) << 64),
                    incarnation: Incarnation(self.roll()),
                },
                from,
                below,
                blocks: self.blocks(MAX_DATA_BLOCKS),
            },
            9 => {
                let blocks = self.runs(20);
                let count: u32 = blocks.iter().map(|part| part.count).sum();
                let known = (self.below(2) * u64::from(count)) as u32;
                Request::Fetch {
                    asker,
                    from,
                    below,
                    blocks,
                    known: (0..known).map(|_| self.version()).collect(),
                    compress: self.below(2) == 0,
                    proof: (self.below(2) == 0).then(|| GrantDigest([self.roll() as u8; 32])),
                }
            }
            11 => Request::Keep {
                asker,
                extents: self.extents(),
                below,
            },
            10 => Request::Collapse {
                asker,
                extents: self.extents(),
                oldest: from,
            },
            0 => Request::Seal {
                disk: asker.disk,
                epoch: asker.epoch,
                grant: self.opaque(MAX_GRANT_BYTES),
                record: self.opaque(MAX_RECORD_BYTES),
                known: Known {
                    incarnation: Incarnation(self.below(9)),
                    reach: self.reach(),
                },
            },
            1 => Request::Join {
                asker,
                extents: self.extents(),
                extent_size: ExtentSize::new(1 << (20 + self.below(11))).unwrap(),
                from: self.epoch(),
            },
            2 => Request::Write {
                asker,
                seq: self.seq(),
                watermark: self.seq(),
                blocks: self.blocks(MAX_ZERO_BLOCKS),
                content: Content::Zeroes,
            },
            3 | 4 => {
                let most = if self.below(4) == 0 {
                    MAX_DATA_BLOCKS
                } else {
                    3
                };
                let blocks = self.blocks(most);
                Request::Write {
                    asker,
                    seq: self.seq(),
                    watermark: self.seq(),
                    blocks,
                    content: Content::Data(Payload::new(self.data(blocks.count))),
                }
            }
            5 => Request::Read {
                asker,
                from: self.epoch(),
                below: self.epoch(),
                blocks: self.blocks(MAX_DATA_BLOCKS),
            },
            6 => Request::List {
                asker,
                extents: self.extents(),
                above: self.version(),
                start: Block(self.below(1 << 50)),
            },
            _ if self.below(2) == 0 => Request::Sync { asker },
            _ => Request::Settle {
                asker,
                extents: self.extents(),
            },
        }
    }

    /// Nothing, a few bytes, or as many as there may be.
    fn opaque(&mut self, most: usize) -> Bytes {
        let len = [0, 1, 33, most][self.below(4) as usize];
        (0..len).map(|at| at as u8).collect()
    }

    /// One to `most` runs of a few blocks each, in order.
    fn runs(&mut self, most: u64) -> Vec<Blocks> {
        let mut next = self.below(1 << 50);
        let count = 1 + self.below(most);
        (0..count)
            .map(|_| {
                let first = next + self.below(3);
                let run = Blocks::new(Block(first), 1 + self.below(9) as u32);
                next = run.end().0;
                run
            })
            .collect()
    }

    fn refusal(&mut self) -> Refusal {
        match self.below(13) {
            12 => Refusal::NotGranted { why: INVALID_THERE },
            9 => Refusal::Source(SourceFault::Away),
            10 => Refusal::Source(SourceFault::Unsealed),
            11 => Refusal::Source(SourceFault::Useless),
            0 => Refusal::Superseded {
                shown: self.epoch(),
            },
            1 => Refusal::NotShown {
                shown: self.epoch(),
            },
            2 => Refusal::OtherIncarnation {
                now: Incarnation(self.roll()),
            },
            3 => Refusal::NoReplica,
            4 => Refusal::Full {
                free: self.roll(),
                needed: self.roll(),
            },
            5 => Refusal::Failed,
            6 => Refusal::BadChecksum,
            7 => Refusal::Damaged {
                block: Block(self.roll()),
            },
            _ => Refusal::Invalid { why: INVALID_THERE },
        }
    }

    fn reply(&mut self) -> Reply {
        match self.below(14) {
            12 => Reply::Digested(Digested {
                digests: (0..1 + self.below(20))
                    .map(|_| Digest {
                        sum: u128::from(self.roll()) << 64 | u128::from(self.roll()),
                        blocks: self.roll(),
                    })
                    .collect(),
                damaged: self.damaged(),
            }),
            13 => Reply::Verified(Verified {
                blocks: self.roll(),
                damaged: self.damaged(),
            }),
            7 => {
                let runs = self.runs(30);
                let next = (self.below(2) == 0).then_some(runs[runs.len() - 1].end());
                Reply::Surveyed { runs, next }
            }
            8 => Reply::Pulled(Pulled {
                absent: self.runs(9),
                copied: self.roll() as u32,
                zeroes: self.roll() as u32,
                same: self.roll() as u32,
                bytes: self.roll(),
                reach: self.reach(),
            }),
            9 => {
                let found: Vec<Fetch> = (0..self.below(12)).map(|_| self.fetch()).collect();
                let with_data = found
                    .iter()
                    .filter(|found| matches!(found, Fetch::Data { .. }));
                let data = self.data(with_data.count() as u32);
                let data = match self.below(2) {
                    0 => Packed::smaller(data),
                    _ => Packed::Plain(data),
                };
                Reply::Fetched(Fetched { found, data })
            }
            10 => Reply::Collapsed,
            11 => Reply::Kept(self.reach()),
            0 => {
                let count = self.below(20);
                let extents = |n: u64| Extents::new(Extent(7 * n as u32), Extent(7 * n as u32 + 7));
                Reply::Sealed(Sealed {
                    incarnation: Incarnation(self.roll()),
                    starts: Starts(self.roll()),
                    watermark: self.version(),
                    reach: self.reach(),
                    replicas: (0..count)
                        .map(|n| ReplicaState {
                            extents: extents(n),
                            from: self.epoch(),
                            lost: self.below(2) == 0,
                        })
                        .collect(),
                })
            }
            1 => Reply::Joined(self.reach()),
            2 => Reply::Written(self.reach()),
            3 => {
                let count = self.below(12);
                let found: Vec<Found> = (0..count).map(|_| self.found()).collect();
                let with_data = found
                    .iter()
                    .filter(|found| matches!(found, Found::Data { .. }));
                let data = self.data(with_data.count() as u32);
                Reply::Read(ReadBlocks { found, data })
            }
            4 => Reply::Synced,
            5 => {
                let count = self.below(40);
                let first = self.below(1 << 50);
                let blocks = (0..count)
                    .map(|n| ListedBlock {
                        block: Block(first + n),
                        version: self.version(),
                        zeroes: self.below(2) == 0,
                    })
                    .collect();
                Reply::Listed {
                    blocks,
                    more: count > 0 && self.below(2) == 0,
                }
            }
            6 => Reply::Settled(self.reach()),
            _ => Reply::Refused(self.refusal()),
        }
    }

    fn reach(&mut self) -> Reach {
        match self.below(4) {
            0 => Reach::UNKNOWN,
            _ => Reach {
                run: self.roll(),
                at: self.roll(),
            },
        }
    }

    fn damaged(&mut self) -> Vec<DamagedBlock> {
        let first = self.below(1 << 50);
        (0..self.below(9))
            .map(|n| DamagedBlock {
                block: Block(first + n),
                version: self.version(),
            })
            .collect()
    }

    fn fetch(&mut self) -> Fetch {
        match self.found() {
            Found::Absent if self.below(2) == 0 => Fetch::Same,
            Found::Absent => Fetch::Absent,
            Found::Zeroes(version) => Fetch::Zeroes(version),
            Found::Data { version, sum } => Fetch::Data { version, sum },
        }
    }

    fn found(&mut self) -> Found {
        match self.below(3) {
            0 => Found::Absent,
            1 => Found::Zeroes(self.version()),
            _ => Found::Data {
                version: self.version(),
                sum: self.roll() as u32,
            },
        }
    }
}

fn stream_of<M: Message>(messages: &[M]) -> Bytes {
    let mut bytes = BytesMut::new();
    for (n, message) in messages.iter().enumerate() {
        let frame = message.encode(Call(n as u64));
        bytes.extend_from_slice(&frame.head);
        bytes.extend_from_slice(&frame.data);
    }
    bytes.freeze()
}

fn decoded_in_pieces<M: Message>(stream: &Bytes, dice: &mut Dice) -> Vec<M> {
    let mut decoder = Decoder::<M>::new();
    let mut messages = Vec::new();
    let mut at = 0;
    while at < stream.len() {
        let most = [20, 2000, 9000][dice.below(3) as usize];
        let end = (at + 1 + dice.below(most) as usize).min(stream.len());
        decoder.push(stream.slice(at..end));
        at = end;
        while let Some((call, message)) = decoder.next().unwrap() {
            assert_eq!(call, Call(messages.len() as u64));
            messages.push(message);
        }
    }
    assert_eq!(decoder.held(), 0);
    messages
}

#[test]
fn every_message_survives_the_wire_however_it_is_cut() {
    let mut dice = Dice(1);
    for _ in 0..60 {
        let requests: Vec<Request> = (0..10).map(|_| dice.request()).collect();
        let stream = stream_of(&requests);
        assert_eq!(decoded_in_pieces::<Request>(&stream, &mut dice), requests);
        fuzz_decode(&stream);
        let replies: Vec<Reply> = (0..20).map(|_| dice.reply()).collect();
        let stream = stream_of(&replies);
        assert_eq!(decoded_in_pieces::<Reply>(&stream, &mut dice), replies);
        fuzz_decode(&stream);
    }
}

#[test]
fn broken_bytes_are_refused_or_mean_something_else_and_never_panic() {
    let mut dice = Dice(2);
    for round in 0..30_000 {
        let mut bytes = if round % 2 == 0 {
            let request = match dice.request() {
                Request::Write {
                    content: Content::Data(_),
                    asker,
                    ..
                } => Request::Sync { asker },
                other => other,
            };
            stream_of(&[request]).to_vec()
        } else {
            stream_of(&[dice.reply()]).to_vec()
        };
        for _ in 0..1 + dice.below(4) {
            // Mostly the header: that is where decisions are.
            let bound = if dice.below(4) == 0 {
                bytes.len()
            } else {
                bytes.len().min(96)
            };
            let at = dice.below(bound as u64) as usize;
            bytes[at] = match dice.below(3) {
                0 => 0xff,
                1 => bytes[at] ^ (1 << dice.below(8)),
                _ => dice.roll() as u8,
            };
        }
        bytes.truncate(1 + dice.below(bytes.len() as u64) as usize);
        fuzz_decode(&bytes);
    }
    for _ in 0..2_000 {
        let noise: Vec<u8> = (0..dice.below(300)).map(|_| dice.roll() as u8).collect();
        fuzz_decode(&noise);
    }
}

#[test]
fn a_header_that_announces_too_much_is_refused_before_anything_arrives() {
    let mut header = Request::Sync {
        asker: Dice(3).asker(),
    }
    .encode(Call(1))
    .head
    .to_vec();
    header[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut decoder = Decoder::<Request>::new();
    decoder.push(header.into());
    assert!(matches!(
        decoder.next(),
        Err(WireError::Length { bound: 0, .. })
    ));

    let mut header = Reply::WRITTEN.encode(Call(1)).head.to_vec();
    header[4] = 0x84;
    header[6..8].copy_from_slice(&257u16.to_le_bytes());
    let mut decoder = Decoder::<Reply>::new();
    decoder.push(header.into());
    assert_eq!(
        decoder.next(),
        Err(WireError::Count {
            got: 257,
            bound: 256
        })
    );
}

#[test]
fn data_that_came_in_one_chunk_is_not_copied() {
    let mut dice = Dice(4);
    let request = Request::Write {
        asker: dice.asker(),
        seq: Seq(1),
        watermark: Seq::ZERO,
        blocks: Blocks::new(Block(7), 1),
        content: Content::Data(Payload::new(dice.data(1))),
    };
    let stream = stream_of(std::slice::from_ref(&request));
    assert_eq!(stream.len(), 88 + 4 + 4096, "as the document says");
    let range = stream.as_ptr_range();
    let mut decoder = Decoder::<Request>::new();
    decoder.push(stream.clone());
    let Some((
        _,
        Request::Write {
            content: Content::Data(payload),
            ..
        },
    )) = decoder.next().unwrap()
    else {
        panic!("a write went in");
    };
    assert!(range.contains(&payload.data.as_ptr()));
    assert_eq!(payload.sums[0], checksum(&payload.data));
}

/// What arrives in one piece of memory, and somebody who counts how many of them are kept.
struct Datagram {
    bytes: Vec<u8>,
    _kept: Arc<()>,
}

impl AsRef<[u8]> for Datagram {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[test]
fn what_comes_a_few_bytes_a_datagram_does_not_keep_the_datagrams() {
    let mut dice = Dice(5);
    let request = Request::Write {
        asker: dice.asker(),
        seq: Seq(1),
        watermark: Seq::ZERO,
        blocks: Blocks::new(Block(7), 4),
        content: Content::Data(Payload::new(dice.data(4))),
    };
    let stream = stream_of(std::slice::from_ref(&request));
    let kept = Arc::new(());
    let mut decoder = Decoder::<Request>::new();
    let mut at = 0;
    while at < stream.len() {
        assert_eq!(decoder.next(), Ok(None), "there is less than a frame");
        // Now and then a long piece comes between short ones.
        let most = if dice.below(1000) == 0 { 2000 } else { 3 };
        let len = (1 + dice.below(most) as usize).min(stream.len() - at);
        let mut bytes = stream[at..at + len].to_vec();
        bytes.resize(6400, 0);
        let _kept = kept.clone();
        decoder.push(Bytes::from_owner(Datagram { bytes, _kept }).slice(..len));
        at += len;
        let datagrams = Arc::strong_count(&kept) - 1;
        assert!(datagrams * 1024 <= decoder.held(), "{datagrams} are kept");
    }
    assert_eq!(decoder.next(), Ok(Some((Call(0), request))));
    assert_eq!((decoder.held(), Arc::strong_count(&kept)), (0, 1));
}

#[test]
fn peers_speak_the_highest_version_that_both_know() {
    let store = StoreId::from_u128(7);
    let range = |min, max| VersionRange { min, max };
    assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
    assert_eq!(range(1, 1).common(range(2, 5)), None);

    let hello = Hello {
        versions: range(2, 9),
        store,
    };
    let (seen, len) = Hello::decode(&hello.encode()).unwrap();
    assert_eq!((seen, len), (hello, 48));
    assert_eq!(
        seen.judge(range(1, 1), true).verdict,
        Verdict::NoCommonVersion
    );
    assert_eq!(seen.judge(range(1, 3), true).verdict, Verdict::Speak(3));
    assert_eq!(seen.judge(range(1, 3), false).verdict, Verdict::NoSuchStore);
    let welcome = seen.judge(range(1, 3), true);
    assert_eq!(Welcome::decode(&welcome.encode()).unwrap().0, welcome);
}

#[test]
fn a_seal_for_version_2_is_what_it_always_was() {
    let mut dice = Dice(5);
    let asker = dice.asker();
    let seal = Request::Seal {
        disk: asker.disk,
        epoch: asker.epoch,
        grant: Bytes::from_static(b"granted"),
        record: Bytes::from_static(b"the record"),
        known: Known {
            incarnation: Incarnation(3),
            reach: Reach { run: 4, at: 5 },
        },
    };
    let frame = spoken(&seal, 2).encode(Call(9));
    assert_eq!(frame.head.len(), 88);
    assert!(frame.data.is_empty() && frame.head[64..72] == [0; 8]);
    let (_, old) = Request::decode(&frame.head, Bytes::new()).unwrap();
    assert_eq!(old, Request::seal(asker.disk, asker.epoch));
    assert_eq!(*spoken(&seal, 3), seal);
}

#[test]
fn answers_for_version_2_are_what_they_always_were() {
    let reach = Reach { run: 4, at: 5 };
    let sealed = |reach| {
        Reply::Sealed(Sealed {
            incarnation: Incarnation(1),
            starts: Starts(2),
            watermark: Version::ZERO,
            reach,
            replicas: vec![],
        })
    };
    for (now, then) in [
        (Reply::Written(reach), Reply::WRITTEN),
        (Reply::Kept(reach), Reply::KEPT),
        (sealed(reach), sealed(Reach::UNKNOWN)),
    ] {
        assert_eq!(answered(now.clone(), 2), then);
        assert_eq!(answered(now.clone(), 3), now);
    }
    let old = sealed(Reach::UNKNOWN).encode(Call(1));
    assert_eq!(old.head.len(), 32 + 16, "as version 2 had it");
}

#[test]
fn a_seal_that_announces_too_much_is_refused_before_it_arrives() {
    let most = Request::Seal {
        disk: DiskId::from_u128(1),
        epoch: Epoch::from_u64(1),
        grant: Bytes::from(vec![0; MAX_GRANT_BYTES]),
        record: Bytes::from(vec![0; MAX_RECORD_BYTES]),
        known: Known::default(),
    };
    let header = most.encode(Call(1)).head.slice(..88).to_vec();
    let with = |grant: u64, payload: u32| {
        let mut header = header.clone();
        header[..4].copy_from_slice(&payload.to_le_bytes());
        header[64..72].copy_from_slice(&grant.to_le_bytes());
        Request::payload_len(&header)
    };
    let (grant, record) = (MAX_GRANT_BYTES as u64, MAX_RECORD_BYTES as u32);
    assert_eq!(with(grant, 4096 + record), Ok(4096 + record as usize));
    assert!(matches!(
        with(grant + 1, 5000),
        Err(WireError::Count { .. })
    ));
    assert!(matches!(with(u64::MAX, 5000), Err(WireError::Count { .. })));
    assert!(matches!(with(0, record + 1), Err(WireError::Count { .. })));
    assert!(matches!(with(7, 6), Err(WireError::Length { .. })));
}

#[test]
fn a_longer_hello_of_a_later_version_is_understood() {
    let hello = Hello::to(StoreId::from_u128(9));
    let mut bytes = hello.encode().to_vec();
    bytes[8..10].copy_from_slice(&60u16.to_le_bytes());
    bytes.extend_from_slice(&[0xee; 12]);
    assert_eq!(Hello::decode(&bytes), Ok((hello, 60)));
    assert_eq!(Hello::expected_len(&bytes[..4]), Ok(None));
    assert_eq!(Hello::expected_len(b"GET / HT"), Err(WireError::NotHello));
}
