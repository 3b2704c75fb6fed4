// Enforces NetworkPolicies on one node: kube-router's controller for them, and none of its others.
//
//	netpol --kubeconfig=FILE --node=NAME --services=CIDR --ready=ADDRESS [--tools=FOLDER]
//
// It writes the whole `filter` table each time. Where kube-proxy works in the same table, what that one changed a moment
// ago is lost; so FOLDER, which is looked in before PATH, holds an iptables that has a table of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "whose rights it has")
	node := flag.String("node", "", "the node that it is on")
	services := flag.String("services", "", "the network of Services")
	ready := flag.String("ready", "", "where it answers as soon as it enforces")
	tools := flag.String("tools", "", "folder with the iptables to use")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *node, *services, *ready, *tools); err != nil {
		fmt.Fprintln(os.Stderr, "netpol:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, node, services, ready, tools string) error {
	if tools != "" {
		if err := os.Setenv("PATH", tools+":"+os.Getenv("PATH")); err != nil {
			return err
		}
	}
	// Before the name of the host, which may be that of another node.
	if err := os.Setenv("NODE_NAME", node); err != nil {
		return err
	}
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(access)
	if err != nil {
		return err
	}
	config := options.NewKubeRouterConfig()
	config.ClusterIPCIDRs = []string{services}
	config.EnableIPv4 = true
	config.RunFirewall = true

	factory := informers.NewSharedInformerFactory(clients, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), pods.HasSynced, namespaces.HasSynced, policies.HasSynced) {
		return errors.New("ended before it knew the cluster")
	}

	tables, sets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return err
	}
	var setsInUse sync.Mutex
	controller, err := netpol.NewNetworkPolicyController(
		clients, config, pods, policies, namespaces, &setsInUse, tables, sets)
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods:       controller.PodEventHandler,
		namespaces: controller.NamespaceEventHandler,
		policies:   controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}

	beats := make(chan *healthcheck.ControllerHeartbeat, 10)
	var begun atomic.Bool
	go func() {
		for range beats {
			begun.Store(true)
		}
	}()
	server := &http.Server{Addr: ready, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(
		func(answer http.ResponseWriter, _ *http.Request) {
			if !begun.Load() {
				answer.WriteHeader(http.StatusServiceUnavailable)
			}
		})}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()

	var working sync.WaitGroup
	working.Add(1)
	go controller.Run(beats, ctx.Done(), &working)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		working.Wait()
		return nil
	}
}
