//! Media that lie: bytes of a store's files are changed under it, and the disk gets them back from the other
//! store.

use super::*;
use replicator::store::ScrubRate;
use replicator::words::BLOCK_BYTES;
use replicator::writer::{Verdict, VerifyOrder};

/// Changes a byte in the middle of the block with this content, in every place of the store where it stands.
async fn spoil(dir: &Path, content: &[u8]) {
    let (dir, content) = (dir.to_owned(), content.to_owned());
    // A connection that is silent for seconds ends.
    let work = tokio::task::spawn_blocking(move || spoil_files(&dir, &content));
    work.await.unwrap();
}

fn spoil_files(dir: &Path, content: &[u8]) {
    let mut spoilt = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("segment.") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let starts = (0..bytes.len()).step_by(64);
        for at in starts.filter(|at| bytes[*at..].starts_with(content)) {
            let file = File::options().write(true).open(&path).unwrap();
            let middle = at + content.len() / 2;
            file.write_at(&[!bytes[middle]], middle as u64).unwrap();
            file.sync_all().unwrap();
            spoilt += 1;
        }
    }
    assert!(spoilt > 0, "the block is on the media");
}

fn block_of(model: &Model, block: u64) -> &[u8] {
    &model.bytes[(block * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize]
}

async fn verified(io: &mut DiskIo, id: u64, deep: bool) -> Verdict {
    let order = VerifyOrder { id, deep };
    within(io.disk().verify(order, |_| {})).await.unwrap()
}

/// Waits until the near store got something back from the other one.
async fn healed(world: &World, io: &mut DiskIo) {
    let until = Instant::now() + PATIENCE;
    while world.near.usage().healed_blocks == 0 {
        assert!(Instant::now() < until, "{:?}", world.near.usage());
        // The disk works while somebody waits for it, and so does the network.
        within(io.read(0, BLOCK_BYTES)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn filled(world: &mut World) -> (DiskIo, Model) {
    let mut model = Model::new(11);
    let mut io = world.open().await;
    for block in 0..200 {
        let data = model.data(BLOCK_BYTES);
        model.put(block * BLOCK_BYTES, &data);
        within(io.write(block * BLOCK_BYTES, data)).await.unwrap();
    }
    within(io.flush()).await.unwrap();
    (io, model)
}

#[tokio::test]
async fn a_damaged_block_is_read_healed_and_then_verified() {
    let (mut world, _far) = World::new();
    let near = world.dir.path().join("near");
    let (mut io, model) = filled(&mut world).await;
    spoil(&near, block_of(&model, 7)).await;
    model.compare_all(&mut io).await;
    healed(&world, &mut io).await;
    // This one nobody has read yet.
    spoil(&near, block_of(&model, 100)).await;
    let shallow = verified(&mut io, 1, false).await;
    assert!(
        shallow.is_good() && shallow.damaged_blocks == 0,
        "{shallow:?}"
    );
    let deep = verified(&mut io, 2, true).await;
    assert!(deep.is_good(), "{deep:?}");
    assert_eq!((deep.damaged_blocks, deep.healed_blocks), (1, 1));
    assert!(deep.blocks_read >= 400);
    let again = verified(&mut io, 3, true).await;
    assert!(again.is_good() && again.damaged_blocks == 0, "{again:?}");
    model.compare_all(&mut io).await;
    within(io.close()).await;
}

#[tokio::test]
async fn what_is_damaged_on_both_stores_is_named_and_is_an_error() {
    let (mut world, _far) = World::new();
    let (mut io, model) = filled(&mut world).await;
    for store in ["near", "far"] {
        spoil(&world.dir.path().join(store), block_of(&model, 30)).await;
    }
    let deep = verified(&mut io, 1, true).await;
    assert!(deep.finished && !deep.has_no_faults(), "{deep:?}");
    let named: Vec<_> = deep
        .damaged
        .iter()
        .map(|one| (one.store, one.block.0))
        .collect();
    assert!(
        named.contains(&(NEAR, 30)) && named.contains(&(FAR, 30)),
        "{deep:?}"
    );
    let read = within(io.read(30 * BLOCK_BYTES, BLOCK_BYTES)).await;
    assert!(
        matches!(read, Err(IoError::Failed(Failure::Unreadable))),
        "{read:?}"
    );
    within(io.read(31 * BLOCK_BYTES, BLOCK_BYTES))
        .await
        .unwrap();
    // Written anew it is whole again.
    within(io.write(30 * BLOCK_BYTES, vec![1; BLOCK_BYTES as usize]))
        .await
        .unwrap();
    within(io.flush()).await.unwrap();
    within(io.read(30 * BLOCK_BYTES, BLOCK_BYTES))
        .await
        .unwrap();
    within(io.close()).await;
}

#[tokio::test]
async fn what_the_scrub_finds_while_a_disk_is_detached_is_healed_when_it_is_opened() {
    let (mut world, _far) = World::new();
    let (io, model) = filled(&mut world).await;
    within(io.close()).await;
    spoil(&world.dir.path().join("near"), block_of(&model, 55)).await;
    world.near.scrub_at(ScrubRate::BytesPerSecond(1 << 32));
    let found = async {
        while world.near.usage().damaged_blocks == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(found).await;
    // Its writer hears of it in the answer to a digest.
    world.config.audit_every = Some(Duration::from_millis(20));
    let mut io = world.open().await;
    healed(&world, &mut io).await;
    assert_eq!(world.near.usage().damaged_blocks, 0);
    model.compare_all(&mut io).await;
    within(io.close()).await;
}
