"""One root, many threads: what one of them has just made is not loaded from disk by another as a second one."""

import threading

import tarkit


def test_a_writable_layer_made_beside_map_and_mounts_holds_its_parent_once(open_store):
    store = open_store(options={"durability": "none"})
    base = store.register(tarkit.T1)
    child = store.register(tarkit.T2, base.chain_id)
    done = threading.Event()

    def look():
        while not done.is_set():
            store.map()
            store.mounts()

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for thread in lookers:
        thread.start()
    try:
        for n in range(150):
            store.create_rw_layer(f"c{n}", child.chain_id).release()
    finally:
        done.set()
        for thread in lookers:
            thread.join()
    base.release()
    assert [gone.chain_id for gone in child.release()] == [child.chain_id, base.chain_id]
    assert store.map() == {}
